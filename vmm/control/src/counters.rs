//! What a machine counts.

use serde::{Deserialize, Serialize};

/// Counts of one machine's life so far. They only grow, but for memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// vCPU exits to the VMM for port I/O.
    pub exits_io: u64,
    /// vCPU exits to the VMM for memory-mapped I/O.
    pub exits_mmio: u64,
    /// All other vCPU exits to the VMM (signals, halts, shutdown).
    pub exits_other: u64,
    /// Queue notifications served by the event loop.
    pub notifications: u64,
    /// Microseconds from the boot request until the vCPUs ran.
    pub boot_to_run_us: u64,
    /// Microseconds from the boot request until the guest's first vsock connection: with Hull's
    /// guest image, until the agent was up. Zero before that.
    pub boot_to_dial_us: u64,
    /// Bytes of memory that should be plugged ([`Request::Memory`](crate::Request::Memory)).
    pub memory_requested: u64,
    /// Bytes of memory that are plugged, besides what the machine started with.
    pub memory_plugged: u64,
    /// Each virtio device, in the order of the guest's addresses.
    pub devices: Vec<DeviceCounters>,
}

/// What has happened to one virtio device. What a daemon or the host's kernel serves (a shared folder,
/// vhost-net) is not counted here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounters {
    /// Its type (virtio 1.3 §5): 1 a network card, 2 a disk, 0 a spare disk without a file, ….
    pub device_id: u32,
    /// Bytes of data given to the guest, without headers.
    pub bytes_to_guest: u64,
    /// Bytes of data taken from it.
    pub bytes_from_guest: u64,
    /// Requests that failed, or data that was lost.
    pub errors: u64,
    /// How often it was so broken, by its driver or its backend, that only a reset helped.
    pub failures: u64,
}
