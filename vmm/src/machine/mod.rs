//! The machine: the only place that knows every part.
//!
//! ```text
//! receive Boot ─▶ check ─▶ build ─▶ run: Started … ─▶ vCPUs stop ─▶ Exited ─▶ the process ends
//!                   └────────┴──────────failure──────────────────────▲
//! ```
//!
//! Threads: the main thread runs the event loop, which serves the control socket and all devices; a
//! thread each runs a vCPU, one each waits for the file behind a queue of a disk, and one each moves the
//! frames of a further pair of a network card's queues. A vCPU takes a slot's lock for one register, the
//! loop for one queue; a disk's thread takes none, and a card's its pair's alone, which others take for
//! a moment while they hold the slot's.
//! The end of the machine is the end of the process: the kernel frees what KVM and memory hold.

mod address_space;
mod build;
mod config;
mod counters;
mod last_words;
mod nics;
mod run;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vcpus;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_control::{Channel, Event, ExitReason, Request, VmConfig};

pub use build::BuildError;
pub use config::ConfigError;
use counters::Counters;
pub use run::RunError;

use crate::jail::Filters;
use crate::report;

/// How long the shim may keep the last event waiting.
const LAST_PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Why there is no machine to build.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shim closed the socket, or said something else.
    #[error("receive the boot request")]
    Receive(#[from] vmm_control::ReceiveError),
    /// The first message is another one.
    #[error("the first request is not Boot")]
    NotBoot,
    /// Its descriptors are not those it names.
    #[error("take the boot request's descriptors")]
    Descriptors(#[from] vmm_control::DescriptorError),
}

/// Waits for the boot request, builds the machine and runs it to its end, which it also tells the
/// shim. Its threads are confined before the guest's first instruction.
pub fn run(control: Channel, filters: Filters) -> ExitReason {
    let control = Arc::new(control);
    match receive_config(&control) {
        Ok(config) => boot(config, &control, filters),
        Err(error) => {
            let counters = Counters::start(0);
            end(
                &control,
                ExitReason::Failed(report::chain(&error)),
                &counters,
            )
        }
    }
}

fn receive_config(control: &Channel) -> Result<VmConfig<OwnedFd>, StartError> {
    match control.receive()? {
        (Request::Boot(config), fds) => Ok(config.attach(fds)?),
        _ => Err(StartError::NotBoot),
    }
}

fn boot(config: VmConfig<OwnedFd>, control: &Arc<Channel>, filters: Filters) -> ExitReason {
    let counters = Arc::new(Counters::start(config.vcpus));
    let reason = match build::build(config, control, &counters, filters) {
        Ok(machine) => run::run(machine, control, &counters, filters)
            .unwrap_or_else(|error| ExitReason::Failed(report::chain(&error))),
        Err(error) => ExitReason::Failed(report::chain(&error)),
    };
    end(control, reason, &counters)
}

/// Says the last word.
fn end(control: &Channel, reason: ExitReason, counters: &Counters) -> ExitReason {
    let last = Event::Exited {
        reason: reason.clone(),
        counters: counters.read(),
    };
    // A shim that is gone does not need to know why its machine stopped.
    let mut ready = [PollFd::new(control, PollFlags::OUT)];
    let _ = poll(&mut ready, Some(&LAST_PATIENCE));
    if let (Err(_), ExitReason::Failed(why)) = (control.send(&last, &[]), &reason) {
        report::warn(format_args!("{why}"));
    }
    reason
}
