//! `hull oci`: the command line of runc, for who runs containers by calling it: BuildKit in dockerd,
//! Podman through conmon, buildah.
//!
//! ```text
//! caller ── hull oci run ─────────────── task service ─▶ shim ─▶ machine
//!              └─ guard                        ▲
//! caller ── hull oci create ── monitor ────────┘  its pid is the container's to the caller
//!                                └─ guard
//! ```
//! A container has a shim of its own, as under containerd, and no containerd behind it. One command
//! finds what another has left below `--root` (`folder`) and asks the shim (`task`); who follows a process
//! (`monitor`) copies its streams (`relay`) and passes signals on, and whoever is killed has a guard.

mod args;
mod descriptors;
mod error;
mod exec;
mod folder;
mod guard;
mod inspect;
mod lifecycle;
mod monitor;
mod relay;
mod report;
mod task;
mod terminal;
mod update;

use std::process::ExitCode;

use serde_json::Value;

pub use args::{OciArgs, VERSION};
pub use inspect::features;

use self::args::OciCommand;
use self::error::OciError;
use crate::error::chain;

/// The name under which this program is `hull oci`: who calls runc has room for one word.
pub const NAME: &str = "hull-oci";

/// Exit status of an `exec` that does not come to run its program, as with runc.
const NOT_EXECUTED: u8 = 255;

/// Does what the arguments say; returns the exit status.
#[must_use]
pub fn run(args: &OciArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(carry_out(args)),
        Err(e) => Err(OciError::kernel("start")(e)),
    };
    let status = done.unwrap_or_else(|error| {
        report::error(args.log.as_deref(), args.log_format, &chain(&error));
        match args.command {
            OciCommand::Exec(_) => NOT_EXECUTED,
            _ => 1,
        }
    });
    ExitCode::from(status)
}

async fn carry_out(args: &OciArgs) -> Result<u8, OciError> {
    let root = &args.root;
    match &args.command {
        OciCommand::Create(create) => lifecycle::create(root, args.debug, create).await?,
        OciCommand::Run(run) => return lifecycle::run(root, args.debug, run).await,
        OciCommand::Start(container) => lifecycle::start(root, &container.id).await?,
        OciCommand::Kill(kill) => lifecycle::kill(root, kill).await?,
        OciCommand::Delete(delete) => lifecycle::delete(root, delete).await?,
        OciCommand::Exec(exec) => return exec::exec(root, exec).await,
        OciCommand::State(container) => print(&inspect::state(root, &container.id).await?),
        OciCommand::Ps(ps) => println!("{}", inspect::ps(root, ps).await?),
        OciCommand::List(list) => print!("{}", inspect::list(root, list).await),
        OciCommand::Pause(container) => lifecycle::pause(root, &container.id).await?,
        OciCommand::Resume(container) => lifecycle::resume(root, &container.id).await?,
        OciCommand::Update(update) => update::update(root, update).await?,
        OciCommand::Features => print(&features()),
        OciCommand::Spec(spec) => inspect::spec(spec)?,
        OciCommand::Monitor(monitor) => return monitor::run(root, monitor).await,
        OciCommand::Guard(guard) => guard::run(root, guard).await?,
    }
    Ok(0)
}

fn print(value: &Value) {
    println!("{value:#}");
}
