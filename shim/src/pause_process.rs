//! The process that stands on the host for a container which joins a running machine: in the
//! container's network namespace, with a pid of its own to tell containerd. (For a machine's first container it is
//! hull-vmm.)
//!
//! It is this program again, started with the one argument [`ARGUMENT`]; it does nothing.

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::spawn::{Place, spawn_from_thread};

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

/// Starts one whose network is there.
///
/// # Errors
/// When it cannot be started, or may not be in the namespace.
pub fn start(network: &Place<'_>) -> Result<Child, PauseError> {
    let error = |what| move |source| PauseError { what, source };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(ARGUMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let enter = || {
        network
            .enter()
            .map_err(error("enter the network namespace"))
    };
    spawn_from_thread(&mut command, enter, error("run this program"))
}

/// What the process does, until it is killed.
pub fn run() -> ! {
    loop {
        nix::unistd::pause();
    }
}
