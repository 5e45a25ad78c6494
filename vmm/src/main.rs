//! `hull-vmm`: runs one virtual machine, as its shim describes it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use hull_vmm::machine;
use vmm_control::{Channel, ExitReason};

/// Runs one virtual machine.
///
/// Started by containerd-shim-hull-v2, which describes the machine and passes every file it may
/// touch over the control socket; hull-vmm opens nothing itself. It ends with the guest, or when
/// the control socket is closed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Descriptor of the inherited control socket (SOCK_SEQPACKET)
    #[arg(long, value_name = "FD", default_value_t = 3, value_parser = clap::value_parser!(i32).range(3..))]
    control_fd: RawFd,
}

fn main() -> ExitCode {
    match run() {
        Ok(ExitReason::Failed(_)) => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitReason> {
    let control = inherited(Args::parse().control_fd)?;
    Ok(machine::run(control))
}

#[expect(
    unsafe_code,
    reason = "a number on the command line becomes a descriptor"
)]
fn inherited(fd: RawFd) -> anyhow::Result<Channel> {
    // SAFETY: nothing in this process has opened or taken over a descriptor yet, so whatever is
    // open at this number is inherited and ours alone; if nothing is, the next call says so.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .with_context(|| format!("no control socket was inherited as descriptor {fd}"))?;
    Ok(Channel::from(socket))
}
