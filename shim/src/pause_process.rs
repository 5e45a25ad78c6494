//! The process that stands on the host for a container which joins a running machine: in its network
//! namespace, with a pid of its own to tell containerd. (For a machine's first container it is
//! hull-vmm.)
//!
//! It is this program again, started with the one argument [`ARGUMENT`]; it does nothing.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Makes a shim a pause process.
pub const ARGUMENT: &str = "pause";

/// Where it finds the namespace.
const NAMESPACE_FD: i32 = 3;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("start a pause process: {what}")]
pub struct PauseError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Starts one in a network namespace, and waits until it is there.
///
/// # Errors
/// When it cannot be started, or may not enter the namespace.
pub async fn start(namespace: &File) -> Result<Child, PauseError> {
    let error = |what| move |source| PauseError { what, source };
    let namespace = namespace
        .try_clone()
        .map_err(error("pass on the network namespace"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(ARGUMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
        .as_std_mut()
        .fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(namespace),
            child_fd: NAMESPACE_FD,
        }])
        .expect("one mapping does not collide");
    let mut child = command.spawn().map_err(error("run this program"))?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        let heard = stdout.read_to_end(&mut said).await;
        heard.map_err(error("listen to it"))?;
    }
    if said != READY {
        let source = io::Error::other(String::from_utf8_lossy(&said).into_owned());
        return Err(error("enter the network namespace")(source));
    }
    Ok(child)
}

/// What it says once it is where it is to be.
const READY: &[u8] = b"ready";

/// What the process does. Returns only if it cannot.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn run() -> io::Result<()> {
    use std::io::Write;

    // The descriptor was made for this, and is opened anew by its name: nothing is taken over.
    let entered = File::open(format!("/proc/self/fd/{NAMESPACE_FD}"))
        .and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?));
    if let Err(error) = entered {
        print!("{error}");
        return Err(error);
    }
    let mut stdout = io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    // The end of its output is the end of what it says.
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    loop {
        nix::unistd::pause();
    }
}
