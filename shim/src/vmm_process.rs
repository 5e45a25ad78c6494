//! The VMM: started in the sandbox's network namespace and in a pid namespace of its own, and spoken
//! to over its control socket. The rest of its jail it enters itself, before it reads from there.
//!
//! Its process keeps the namespace alive.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use log::debug;
use nix::sched::CloneFlags;
use tokio::process::Child;
use tokio::sync::mpsc::{self, Receiver, Sender};
use vmm_control::{Channel, Disk, Event, ReceiveError, Request, SendError, VmConfig};

use crate::spawn::{self, Account, Place, spawn_from_thread};

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
    /// The pid namespace.
    #[error("make a pid namespace")]
    PidNamespace(#[source] io::Error),
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
    Boot(#[source] SendError),
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
    pub fn boot(&self, config: VmConfig<OwnedFd>) -> Result<(), SendError> {
        let (wire, fds) = config.detach();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.0.send(&Request::Boot(Box::new(wire)), &fds)
    }

    /// Connects a network card to a tap: a descriptor for each pair of the card's queues.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn plug(&self, nic: usize, tap: &[OwnedFd]) -> Result<(), SendError> {
        let tap: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
        self.0.send(&Request::Plug { nic }, &tap)
    }

    /// Gives a disk that has no file its block device.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn plug_disk(&self, number: usize, disk: Disk<OwnedFd>) -> Result<(), SendError> {
        let request = Request::PlugDisk {
            disk: number,
            read_only: disk.read_only,
            serial: disk.serial,
        };
        self.0.send(&request, &[disk.file.as_fd()])
    }

    /// Has a disk's file closed.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn unplug_disk(&self, number: usize) -> Result<(), SendError> {
        self.0.send(&Request::UnplugDisk { disk: number }, &[])
    }

    /// Asks for `mib` MiB of memory to be plugged.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub fn set_memory(&self, mib: u32) -> Result<(), SendError> {
        self.0.send(&Request::Memory { mib }, &[])
    }

    /// Asks the VMM to end the machine. One that is gone has done so.
    pub fn stop(&self) {
        let _ = self.0.send(&Request::Stop, &[]);
    }
}

/// What the VMM's jail is made from.
#[derive(Debug, Clone, Copy)]
pub struct Jail {
    /// The sandbox's own user.
    pub uid: u32,
    /// Nobody else runs on a core beside the guest.
    pub core_scheduling: bool,
}

/// Starts the VMM in the network namespace at `network`, or in a new one; its standard error is the
/// child's.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    program: &Path,
    network: Option<&Path>,
    jail: Jail,
    account: &Account,
) -> Result<(Child, Control, VmmEvents), VmmError> {
    let prepare = |what| move |source| VmmError::Prepare { what, source };
    let (ours, theirs) = Channel::pair().map_err(prepare("make the control socket"))?;
    let mut command = spawn::daemon(program, theirs.into());
    command
        .args(["--control-fd", &spawn::DESCRIPTOR.to_string()])
        .args(["--uid", &jail.uid.to_string()])
        .args(jail.core_scheduling.then_some("--core-scheduling"))
        .env_clear();
    (account.open(&mut command)).map_err(prepare("enter its cgroup"))?;
    let failed = |source| VmmError::Start {
        program: program.to_owned(),
        source,
    };
    let child = spawn_from_thread(&mut command, || enter(network), failed)?;
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

/// Where the VMM is born: what it could not enter later, or not make by itself.
fn enter(network: Option<&Path>) -> Result<(), VmmError> {
    // It will be the first process there, and see no other. What it does as such: nothing, since it
    // has no children, and of signals it ignores only what others in there could send.
    let pids = nix::sched::unshare(CloneFlags::CLONE_NEWPID);
    pids.map_err(|e| VmmError::PidNamespace(e.into()))?;
    let place = network.map_or(Place::New, Place::At);
    place.enter().map_err(|source| VmmError::Namespace {
        path: network.unwrap_or(Path::new("(new)")).to_owned(),
        source,
    })
}

/// Passes on what the VMM says, until it closes its end or nobody listens any more.
fn receive_all(channel: &Channel, events: &Sender<Said>) {
    loop {
        let received = channel.receive();
        // A connection of the guest's is lost then, and nothing else: no other message has descriptors.
        if let Err(e @ ReceiveError::NoDescriptor) = &received {
            debug!("{e}");
            continue;
        }
        let last = received.is_err();
        if events.blocking_send(received).is_err() || last {
            return;
        }
    }
}
