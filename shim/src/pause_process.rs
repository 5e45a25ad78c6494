//! The process that stands on the host for a container which joins a running machine: in the machine's
//! network namespace, or in a new one if the container does not share the network, with a pid of its own
//! to tell containerd. (For a machine's first container it is hull-vmm.)
//!
//! It is this program again, started with the one argument [`ARGUMENT`]; it does nothing.

use std::fs::File;
use std::io;
use std::process::Stdio;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::{Child, Command};

use crate::spawn::spawn_from_thread;

/// Makes a shim a pause process.
pub const ARGUMENT: &str = "pause";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("start a pause process: {what}")]
pub struct PauseError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Starts one in a network namespace, or in a new one without.
///
/// # Errors
/// When it cannot be started, or may not be in the namespace.
pub fn start(namespace: Option<&File>) -> Result<Child, PauseError> {
    let error = |what| move |source| PauseError { what, source };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(ARGUMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let enter = || {
        let entered = match namespace {
            Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET),
            None => unshare(CloneFlags::CLONE_NEWNET),
        };
        entered.map_err(|e| error("enter the network namespace")(e.into()))
    };
    spawn_from_thread(&mut command, enter, error("run this program"))
}

/// What the process does, until it is killed.
pub fn run() -> ! {
    loop {
        nix::unistd::pause();
    }
}
