//! Virtio devices and their transport (virtio 1.3).
//!
//! A [`device::Device`] is what the specification's "Device Operation" says; the transport owns
//! status, features, queues, notifications and interrupts. Devices do not know KVM. Disks and cards may have
//! threads of their own, which [`device::Device::halt`] keeps away from the guest's memory.

pub mod balloon;
pub mod blk;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod status;
mod vrings;
pub mod vsock;
