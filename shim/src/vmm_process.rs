//! The VMM: started in the sandbox's network namespace, and spoken to over its control socket.
//!
//! Its process keeps the namespace alive, and its pid is the one that containerd is told: dockerd
//! finds the container's network at `/proc/PID/ns/net`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::CloneFlags;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{self, Receiver, Sender};
use vmm_control::{Channel, Event, ReceiveError, Request, SendError, VmConfig};

/// Events that may wait: a VMM that says more is itself made to wait.
const BACKLOG: usize = 64;

/// Why the VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Its socket or the thread that listens to it.
    #[error("{what}")]
    Prepare {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The network namespace.
    #[error("enter the network namespace {}", path.display())]
    Namespace {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program.
    #[error("start the virtual machine monitor {}", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The boot request.
    #[error("send the boot request")]
    Boot(#[from] SendError),
}

/// The shim's end of the control socket, to send requests.
#[derive(Debug, Clone)]
pub struct Control(Arc<Channel>);

#[cfg(test)]
impl From<Channel> for Control {
    fn from(channel: Channel) -> Self {
        Self(Arc::new(channel))
    }
}

/// What the VMM says, with the descriptors that belong to it; the error is the last thing.
pub type VmmEvents = Receiver<Said>;

type Said = Result<(Event, Vec<OwnedFd>), ReceiveError>;

impl Control {
    /// Asks the VMM to build and run the machine.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn boot(&self, config: VmConfig<OwnedFd>) -> Result<(), VmmError> {
        let (wire, fds) = config.detach();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        Ok(self.0.send(&Request::Boot(Box::new(wire)), &fds)?)
    }

    /// Connects a network card to a tap.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn plug(&self, nic: usize, tap: &OwnedFd) -> Result<(), SendError> {
        self.0.send(&Request::Plug { nic }, &[tap.as_fd()])
    }

    /// Asks the VMM to end the machine. One that is gone has done so.
    pub fn stop(&self) {
        let _ = self.0.send(&Request::Stop, &[]);
    }
}

/// Starts the VMM in the network namespace at `network`, or in a new one; its standard error is the
/// child's.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    program: &Path,
    network: Option<&Path>,
) -> Result<(Child, Control, VmmEvents), VmmError> {
    let prepare = |what| move |source| VmmError::Prepare { what, source };
    let (ours, theirs) = Channel::pair().map_err(prepare("make the control socket"))?;
    let mut command = Command::new(program);
    command
        .args(["--control-fd", "3"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
        .as_std_mut()
        .fd_mappings(vec![FdMapping {
            parent_fd: theirs.into(),
            child_fd: 3,
        }])
        .expect("one mapping does not collide");
    let child = spawn_in(&mut command, program, network)?;
    // Ours of the VMM's end: the VMM's death is to close the last one.
    drop(command);

    let channel = Arc::new(ours);
    let (sender, events) = mpsc::channel(BACKLOG);
    let receiver = Arc::clone(&channel);
    // A thread that waits in the kernel: a sequenced-packet socket is nothing tokio knows.
    thread::Builder::new()
        .name("vmm-control".into())
        .spawn(move || receive_all(&receiver, &sender))
        .map_err(prepare("start the control socket's thread"))?;
    Ok((child, Control(channel), events))
}

/// Spawns the command from a thread that has entered the namespace: a child is born where its
/// parent thread is, and the thread ends at once.
fn spawn_in(
    command: &mut Command,
    program: &Path,
    network: Option<&Path>,
) -> Result<Child, VmmError> {
    let runtime = tokio::runtime::Handle::current();
    thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            enter(network)?;
            let _runtime = runtime.enter();
            command.spawn().map_err(|source| VmmError::Start {
                program: program.to_owned(),
                source,
            })
        });
        spawned.join().expect("the thread does not panic")
    })
}

fn enter(network: Option<&Path>) -> Result<(), VmmError> {
    let entered = match network {
        Some(path) => {
            File::open(path).and_then(|file| Ok(nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?))
        }
        None => nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(Into::into),
    };
    entered.map_err(|source| VmmError::Namespace {
        path: network.unwrap_or(Path::new("(new)")).to_owned(),
        source,
    })
}

/// Passes on what the VMM says, until it closes its end or nobody listens any more.
fn receive_all(channel: &Channel, events: &Sender<Said>) {
    loop {
        let received = channel.receive();
        let last = received.is_err();
        if events.blocking_send(received).is_err() || last {
            return;
        }
    }
}
