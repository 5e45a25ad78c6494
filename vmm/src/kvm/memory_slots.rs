//! Memory slots: which guest addresses are memory, and whose.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::Ram;

/// The VM's memory slots. They are only ever added: taking one away would make the guest wait for
/// every vCPU.
///
/// KVM keeps a few bytes for each large page of a slot, and on hosts without nested paging eight for
/// each small one, from the moment there is the slot. So there is none for what may never be used.
#[derive(Debug)]
pub struct MemorySlots {
    fd: Arc<VmFd>,
    ram: Ram,
    next: u32,
}

impl MemorySlots {
    pub(super) fn new(fd: Arc<VmFd>, ram: Ram) -> Self {
        Self { fd, ram, next: 0 }
    }

    /// Makes `length` bytes at `start`, which lie in one region of memory, the guest's.
    ///
    /// # Errors
    /// When they do not, or KVM refuses: a slot for addresses that have one, no memory for it.
    pub fn add(&mut self, start: GuestAddress, length: u64) -> io::Result<()> {
        self.set(start, length, 0)
    }

    /// The same, but the guest's to read alone: its stores leave it as those to no memory do.
    ///
    /// # Errors
    /// As [`MemorySlots::add`].
    pub fn add_read_only(&mut self, start: GuestAddress, length: u64) -> io::Result<()> {
        self.set(start, length, KVM_MEM_READONLY)
    }

    #[expect(unsafe_code, reason = "telling KVM where memory is")]
    fn set(&mut self, start: GuestAddress, length: u64, flags: u32) -> io::Result<()> {
        let outside = || io::Error::other("not in one region of memory");
        let (region, offset) = self.ram.to_region_addr(start).ok_or_else(outside)?;
        if length > region.len() - offset.0 {
            return Err(outside());
        }
        let host = region.as_ptr().addr() as u64 + offset.0;
        let slot = kvm_userspace_memory_region {
            slot: self.next,
            flags,
            guest_phys_addr: start.0,
            memory_size: length,
            userspace_addr: host,
        };
        // SAFETY: the guest may touch the range as long as a vCPU can run.
        // 1. It lies in one live mapping, made by `memory`: checked above.
        // 2. It stays mapped: each `Vcpu`, the only way to run one, holds `ram`.
        // 3. No Rust reference points into it: `vm_memory` hands out volatile slices only.
        unsafe { self.fd.set_user_memory_region(slot) }?;
        self.next += 1;
        Ok(())
    }
}
