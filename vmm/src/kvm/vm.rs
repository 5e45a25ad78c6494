//! The virtual machine: memory, vCPUs, interrupts and notifications.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, MemorySlots, Vcpu};
use crate::memory::Ram;

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    /// Shared with the vCPUs: KVM unbinds every interrupt when it is closed.
    fd: Arc<VmFd>,
    /// Dropped after `fd`.
    ram: Ram,
}

impl Vm {
    /// Creates a virtual machine of the architecture's `type_` (KVM api.rst 4.2) that is to have of
    /// `ram` what [`Vm::memory_slots`] adds.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn new(kvm: &Kvm, type_: u64, ram: Ram) -> Result<Self, KvmError> {
        loop {
            match kvm.create_vm_with_type(type_) {
                Ok(fd) => {
                    let fd = Arc::new(fd);
                    return Ok(Self { fd, ram });
                }
                // A signal that arrives while KVM starts a thread of its own.
                Err(e) if e.errno() == libc::EINTR => {}
                Err(source) => {
                    let what = "create the VM";
                    return Err(KvmError::Ioctl { what, source });
                }
            }
        }
    }

    /// What KVM's interface offers beyond this, for the architecture's part.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Creates a vCPU.
    ///
    /// # Errors
    /// When KVM refuses, which it does for more of them than it supports.
    pub fn create_vcpu(&self, id: u8) -> Result<Vcpu, KvmError> {
        match self.fd.create_vcpu(id.into()) {
            Ok(fd) => Ok(Vcpu::new(id, fd, Arc::clone(&self.fd), self.ram.clone())),
            Err(source) => Err(KvmError::Vcpu { id, source }),
        }
    }

    /// What gives the VM its memory; called once.
    #[must_use]
    pub fn memory_slots(&self) -> MemorySlots {
        MemorySlots::new(Arc::clone(&self.fd), self.ram.clone())
    }

    /// Makes `line` raise the interrupt `gsi`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn bind_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(line, gsi)
            .map_err(|source| KvmError::Ioctl {
                what: "bind an interrupt",
                source,
            })
    }

    /// Makes a 32-bit write of `value` to `address` do no more than signal `eventfd`, without a vCPU
    /// leaving the kernel.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn bind_store(&self, eventfd: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(eventfd, &IoEventAddress::Mmio(address), value)
            .map_err(|source| KvmError::Ioctl {
                what: "bind a store",
                source,
            })
    }
}
