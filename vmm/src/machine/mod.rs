//! The machine: the only place that knows every part.
//!
//! Threads: the main thread runs the event loop, which serves the control socket and all devices; a
//! thread each runs a vCPU. A vCPU takes a slot's lock for one register, the loop for one queue.
//! The end of the machine is the end of the process: the kernel frees what KVM and memory hold.

mod build;
mod counters;
mod run;
mod vcpus;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_control::{Channel, Event, ExitReason, Request, VmConfig};

pub use build::BuildError;
use counters::Counters;
pub use run::RunError;

/// What the process is told to do first.
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

/// Waits for the boot request.
///
/// # Errors
/// When something else comes.
pub fn receive_config(control: &Channel) -> Result<VmConfig<OwnedFd>, StartError> {
    match control.receive()? {
        (Request::Boot(config), fds) => Ok(config.attach(fds)?),
        _ => Err(StartError::NotBoot),
    }
}

/// Builds the machine and runs it to its end, which it also tells the shim.
pub fn boot(config: VmConfig<OwnedFd>, control: Channel) -> ExitReason {
    let control = Arc::new(control);
    let counters = Arc::new(Counters::start());
    let reason = build::build(config, &control, &counters)
        .map_err(|error| failed(&error))
        .and_then(|machine| run::run(machine, &control, &counters).map_err(|e| failed(&e)))
        .unwrap_or_else(|failure| failure);
    let last = Event::Exited {
        reason: reason.clone(),
        counters: counters.read(),
    };
    // A shim that is gone does not need to know.
    let _ = control.send(&last, &[]);
    reason
}

fn failed(error: &dyn std::error::Error) -> ExitReason {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    ExitReason::Failed(text)
}
