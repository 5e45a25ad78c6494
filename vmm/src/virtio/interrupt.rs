//! The interrupt of one device: an irqfd, from which KVM injects it.

use vmm_sys_util::eventfd::EventFd;

/// Raises a device's interrupt. Why it was raised, the driver reads from the transport's registers.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`, an eventfd bound to the device's GSI.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self { line }
    }

    /// Raises it.
    pub fn raise(&self) {
        // An eventfd write fails only when its counter is full, and then the line is pending anyway.
        let _ = self.line.write(1);
    }

    /// The line itself: to be bound to a GSI, and for a daemon that serves queues and raises it
    /// directly.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}
