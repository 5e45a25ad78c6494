//! A ring that this process does not serve itself, as whoever does is told of it.

use vmm_sys_util::eventfd::EventFd;

/// One ring for a daemon (vhost-user) or for the host's kernel (vhost-net) to serve. Addresses are
/// guest-physical.
#[derive(Debug)]
pub struct Vring<'a> {
    /// The queue's index.
    pub index: u8,
    /// Descriptors in it.
    pub size: u16,
    /// Its descriptor table.
    pub descriptors: u64,
    /// Its available ring.
    pub available: u64,
    /// Its used ring.
    pub used: u64,
    /// The first available chain to serve.
    pub next_available: u16,
    /// The driver's notification.
    pub kick: &'a EventFd,
    /// What to signal when buffers were used.
    pub call: &'a EventFd,
}
