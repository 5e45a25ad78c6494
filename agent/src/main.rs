//! PID 1 of a Hull guest: boots it, dials the shim, serves it, resets the machine.

use agent_protocol::RPC_PORT;
use anyhow::Context;
use hull_agent::host::Host;
use hull_agent::{boot, logging};

fn main() {
    if std::process::id() != 1 {
        eprintln!("hull-agent is the init of a Hull guest and does nothing elsewhere");
        std::process::exit(1);
    }
    if let Err(error) = run() {
        boot::complain(&format!("{error:#}"));
    }
    boot::restart()
}

fn run() -> anyhow::Result<()> {
    let cards = boot::prepare()?;
    logging::start();
    // One thread: the agent forks (see `sys::fork`).
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let host = Host::MACHINE;
        let shim = host
            .connect(RPC_PORT)
            .await
            .context("connect to the shim")?;
        logging::send_to(host).await;
        hull_agent::serve(host, cards, shim)
            .await
            .map_err(Into::into)
    })
}
