//! The interrupt of one device: a status word the driver reads and an irqfd that KVM injects.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` bit 0: the device used a buffer (virtio 1.3 §4.2.2).
const USED_BUFFER: u32 = 1 << 0;
/// `InterruptStatus` bit 1: the configuration changed.
const CONFIG_CHANGE: u32 = 1 << 1;

/// Raises a device's interrupt.
#[derive(Debug)]
pub struct Interrupt {
    /// The driver reads it in its handler and acknowledges by bit. `SeqCst` on both sides: the line
    /// is raised after the bit is set, and the handler runs after the line.
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd bound to the device's GSI.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG_CHANGE);
    }

    /// What `InterruptStatus` reads as.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Clears the bits that the driver wrote to `InterruptACK`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The line itself: to be bound to a GSI, and for a daemon that serves queues and raises it
    /// directly. The status word then has to say "used buffer" at any time, since nobody sets it.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when its counter is full, and then the line is pending anyway.
        let _ = self.line.write(1);
    }
}
