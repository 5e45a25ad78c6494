//! `hull-vmm`: runs one virtual machine, as its shim describes it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use hull_vmm::jail::{self, Filters, Jail};
use hull_vmm::{machine, report};
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
    /// The sandbox's own user and group, which hull-vmm becomes in its jail
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uid: Option<u32>,
    /// Let nobody else run on a core beside the guest's threads
    #[arg(long, requires = "uid")]
    core_scheduling: bool,
    /// Run the guest without a jail, with all rights of this process
    #[arg(long, conflicts_with = "uid")]
    unjailed: bool,
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
    report::end_on_panic();
    let args = Args::parse();
    let filters = confine(&args)?;
    let control = inherited(args.control_fd)?;
    Ok(machine::run(control, filters))
}

/// Enters the jail, before anything is received.
fn confine(args: &Args) -> anyhow::Result<Filters> {
    match args.uid {
        Some(uid) => {
            let core_scheduling = args.core_scheduling;
            let jail = Jail {
                uid,
                core_scheduling,
            };
            Ok(jail::enter(&jail, args.control_fd)?)
        }
        None if args.unjailed => Ok(Filters::unjailed()),
        None => anyhow::bail!(
            "no jail: give --uid, as the shim does, or --unjailed to run the guest without one"
        ),
    }
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
