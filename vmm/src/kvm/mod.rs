//! KVM: the virtual machine, its processors and what is attached to it.
//!
//! A [`Vm`] and each [`Vcpu`] keep the guest's memory mapped and its interrupts bound for as long as
//! they are there, so that no order of dropping lets a guest run without either.

mod kick;
mod memory_slots;
mod vcpu;
mod vm;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;

pub use kick::{Kicker, kicker};
pub use memory_slots::MemorySlots;
pub use vcpu::{Exit, Runner, Vcpu};
pub use vm::Vm;

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
    /// The guest cannot be given its memory.
    #[error("map guest memory")]
    Memory(#[source] std::io::Error),
    /// No vCPU could be made.
    #[error("create vCPU {id}")]
    Vcpu {
        /// Which one.
        id: u8,
        /// What the kernel said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Takes over `/dev/kvm`, opened by someone else.
///
/// # Errors
/// When it is not that.
#[expect(
    unsafe_code,
    reason = "kvm-ioctls takes over a descriptor by its number"
)]
pub fn take_over(kvm: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open and ours, and `Kvm` owns it from now on. An ioctl on one that
    // is not KVM's fails; the version tells.
    let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(KvmError::NotKvm(other)),
    }
}
