//! What a virtio device is to its transport.

use std::io;
use std::iter::Sum;
use std::os::fd::BorrowedFd;

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueError, Queues};

/// Device types (virtio 1.3 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// No device, which a driver ignores without a word (§4.2.3.1.1).
    Nothing = 0,
    /// Network card, §5.1.
    Net = 1,
    /// Block device, §5.2.
    Block = 2,
    /// Entropy source, §5.4.
    Entropy = 4,
    /// Memory balloon, §5.5.
    Balloon = 5,
    /// Socket device, §5.10.
    Socket = 19,
    /// Memory device, §5.15.
    Memory = 24,
    /// File system device, §5.11.
    FileSystem = 26,
    /// Memory that keeps its contents, §5.19.
    PersistentMemory = 27,
}

/// Why a device cannot go on. The transport sets `DEVICE_NEEDS_RESET` (virtio 1.3 §2.1.2): only the
/// driver's reset helps. A request that merely fails is a status the driver reads, not an error.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke a queue's rules.
    #[error("broken queue")]
    Queue(#[from] QueueError),
    /// A daemon that serves the device is gone or does not do its part.
    #[error("{0}")]
    Backend(String),
}

/// What has passed through a device since its machine began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of data given to the guest, without headers.
    pub to_guest: u64,
    /// Bytes of data taken from it.
    pub from_guest: u64,
    /// Requests that failed, or data that was lost, for whatever reason.
    pub errors: u64,
}

impl Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            to_guest: sum.to_guest + part.to_guest,
            from_guest: sum.from_guest + part.from_guest,
            errors: sum.errors + part.errors,
        })
    }
}

/// Copies what a driver reads of a configuration space at `offset` to `data`; past the end nothing is
/// copied.
pub(super) fn copy_config(space: &[u8], offset: usize, data: &mut [u8]) {
    for (to, from) in data.iter_mut().zip(space.iter().skip(offset)) {
        *to = *from;
    }
}

/// A virtio device: identity, configuration space and the meaning of its queues.
///
/// ```text
/// reset ──driver writes DRIVER_OK──▶ activate ──▶ serve / serve_backend, any number ──▶ reset …
/// ```
/// Calls come from the event loop, from the vCPU that reads or writes a register, or, before the machine
/// runs, from its build; never two at once.
pub trait Device: Send {
    /// The type the driver binds to.
    fn id(&self) -> DeviceId;

    /// Largest size of each queue in descriptors, a power of two; their number is fixed.
    fn queue_sizes(&self) -> &[u16];

    /// Device-specific feature bits offered. The transport adds `VIRTIO_F_VERSION_1`,
    /// `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_RING_F_INDIRECT_DESC`, unless
    /// [`Device::external_queues`].
    fn features(&self) -> u64;

    /// Reads the configuration space; bytes past its end are zero (they are when called).
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes the configuration space. Few devices have a writable field.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready (`DRIVER_OK`) and accepted `features`, a subset of those offered.
    ///
    /// # Errors
    /// When the device cannot work; it then needs a reset.
    fn activate(&mut self, _features: u64, _queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver reset the device: forget every request and all negotiated state.
    fn reset(&mut self) {}

    /// The driver made buffers available in queue `index`.
    ///
    /// # Errors
    /// When the driver broke the queue's rules.
    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError>;

    /// A descriptor whose readability means work for [`Device::serve_backend`]. A device with
    /// several hands out an epoll instance of its own. It must be the same descriptor for life.
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The backend is ready. Called only while active, level-triggered; the device leaves
    /// descriptors out of its epoll instance as long as it could not serve them.
    ///
    /// # Errors
    /// When the driver broke a queue's rules.
    fn serve_backend(&mut self, _queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Whether a daemon (vhost-user) or the host's kernel (vhost-net) serves the queues: the event loop
    /// then leaves the queues' notifications to it, and `features` is the whole set that is offered.
    fn external_queues(&self) -> bool {
        false
    }

    /// What has passed through it, as far as it passes through this process.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// The device has its place: these are its queues' notifications and its interrupt, for life. It is
    /// for devices that serve queues by threads of their own.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    fn wire(&mut self, _kicks: &[EventFd], _interrupt: &Interrupt) -> io::Result<()> {
        Ok(())
    }

    /// Whether a thread of the device serves queue `index`: the event loop leaves its notifications to
    /// that. The rings are the thread's from [`Device::activate`] to [`Device::halt`].
    fn has_thread(&self, _queue: usize) -> bool {
        false
    }

    /// The device is not live any more: it failed, its driver gave up, or it is reset. Once this returns
    /// nobody touches the driver's memory for it: none of its threads, no daemon, not the host's kernel. It
    /// is called with every write to the status of a device that is not live.
    fn halt(&mut self) {}
}
