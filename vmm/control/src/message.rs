//! The messages of the control socket.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{FdIndex, VmConfig};
use crate::counters::Counters;

/// From the shim to the VMM.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build the machine and run it. The first message, and sent once.
    Boot(Box<VmConfig<FdIndex>>),
    /// Splice the attached stream socket to a listener in the guest. A guest that refuses is seen
    /// as the socket's end.
    Connect {
        /// The guest's vsock port.
        port: u32,
    },
    /// Connect a network interface to the attached tap, in place of the one it may have had: as many
    /// descriptors as the interface has pairs of queues, as in [`Nic::taps`](crate::Nic::taps). A tap that
    /// is none, or has more or fewer, ends the machine.
    Plug {
        /// Which of [`VmConfig::nics`].
        nic: usize,
    },
    /// Give a disk without a file the attached block device. The guest finds it when it looks again. What
    /// is none, and a disk that has a file, end the machine.
    PlugDisk {
        /// Which one: of [`VmConfig::disks`], and then of [`VmConfig::spare_disks`], from 0.
        disk: usize,
        /// Nobody may write to it.
        read_only: bool,
        /// By which the guest recognizes it; at most 20 bytes.
        serial: String,
    },
    /// Take a disk's file away and close it, whether or not the guest has let go of it.
    UnplugDisk {
        /// Which one, as in [`Request::PlugDisk`].
        disk: usize,
    },
    /// Ask the guest to give up so much memory altogether. It does so as it can, and takes it back
    /// before it would kill a process for want of memory. Without a balloon nothing happens.
    Balloon {
        /// MiB; 0 gives all of it back to the guest.
        mib: u32,
    },
    /// Ask the guest to have so much of [`VmConfig::hotplug_mib`] plugged. It plugs and unplugs as it
    /// can; [`Counters::memory_plugged`] tells how far it is. Without memory to plug nothing happens.
    Memory {
        /// MiB, rounded down to blocks of 2; more than there are mean all.
        mib: u32,
    },
    /// Answer with [`Event::Counters`].
    Counters,
    /// End the machine at once.
    Stop,
}

/// From the VMM to the shim.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The vCPUs run.
    Started,
    /// The guest connected to the host's `port`; the attached stream socket is its other end.
    /// Whoever does not want the connection closes it, and the guest sees a reset.
    Dialled {
        /// The host's vsock port, as the guest named it.
        port: u32,
    },
    /// The answer to [`Request::Counters`].
    Counters(Counters),
    /// The machine is over; nothing follows.
    Exited {
        /// What ended it.
        reason: ExitReason,
        /// The counters' last state.
        counters: Counters,
    },
}

/// What ended a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// [`Request::Stop`].
    Stopped,
    /// The guest reset the machine.
    Reset,
    /// The guest's kernel panicked; one line of text says why, in the guest's words.
    Panicked(String),
    /// The guest's first process ended, which its kernel takes for a panic: the process' exit code, or 128
    /// and the number of the signal that ended it.
    InitEnded(i32),
    /// The guest turned the machine off (PSCI `SYSTEM_OFF`).
    PoweredOff,
    /// The guest's CPU could not even deliver a double fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// The machine could not be built or could not go on; the text says why, cause by cause.
    Failed(String),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped by the shim"),
            Self::Reset => f.write_str("reset by the guest"),
            Self::Panicked(why) => write!(f, "the guest's kernel panicked: {why}"),
            Self::InitEnded(code) => write!(f, "the guest's first process ended with {code}"),
            Self::PoweredOff => f.write_str("turned off by the guest"),
            Self::TripleFault => f.write_str("triple fault in the guest"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
