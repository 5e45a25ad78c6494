//! KVM: the virtual machine and what is attached to it.
#![expect(
    unsafe_code,
    reason = "taking over a descriptor, and telling KVM where memory is"
)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Ram;

/// The only version of KVM's interface there is (KVM api.rst 4.1).
const API_VERSION: i32 = 12;

/// Why KVM did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is something else.
    #[error("the descriptor passed as /dev/kvm answers version {0}, not {API_VERSION}")]
    NotKvm(i32),
    /// An ioctl failed.
    #[error("{what}")]
    Ioctl {
        /// What it was to do.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Takes over `/dev/kvm`, opened by someone else.
///
/// # Errors
/// When it is not that.
pub fn take_over(kvm: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open and ours, and `Kvm` owns it from now on. An ioctl on one that
    // is not KVM's fails; the version tells.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(KvmError::NotKvm(other)),
    }
}

/// Creates a virtual machine.
///
/// # Errors
/// When KVM refuses.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            // A signal that arrives while KVM starts a thread of its own.
            Err(e) if e.errno() == libc::EINTR => {}
            other => {
                return other.map_err(|source| KvmError::Ioctl {
                    what: "create the VM",
                    source,
                });
            }
        }
    }
}

/// Gives the VM its memory, one slot for each region. `ram` has to outlive the VM: its owner,
/// `machine::Machine`, drops both with the process.
///
/// # Errors
/// When KVM refuses.
pub fn map_memory(vm: &VmFd, ram: &Ram) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: KVM may touch the region's range until the slot is deleted with the VM.
        // 1. The range is one live mapping, made by `memory::allocate`.
        // 2. It is never unmapped before the process ends: see above.
        // 3. No Rust reference points into it: `vm_memory` hands out volatile slices only.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| KvmError::Ioctl {
            what: "map guest memory",
            source,
        })?;
    }
    Ok(())
}

/// Makes `line` raise the interrupt `gsi`.
///
/// # Errors
/// When KVM refuses.
pub fn bind_interrupt(vm: &VmFd, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
    vm.register_irqfd(line, gsi)
        .map_err(|source| KvmError::Ioctl {
            what: "bind an interrupt",
            source,
        })
}

/// Makes a 32-bit write of a queue's number to `address` signal that queue's eventfd, without a
/// vCPU leaving the kernel.
///
/// # Errors
/// When KVM refuses.
pub fn bind_notifications(vm: &VmFd, queues: &[EventFd], address: u64) -> Result<(), KvmError> {
    for (number, queue) in (0_u32..).zip(queues) {
        vm.register_ioevent(queue, &IoEventAddress::Mmio(address), number)
            .map_err(|source| KvmError::Ioctl {
                what: "bind a notification",
                source,
            })?;
    }
    Ok(())
}
