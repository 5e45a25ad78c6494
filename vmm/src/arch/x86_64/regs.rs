//! Registers as the PVH protocol wants them at the kernel's entry: 32-bit protected mode, flat
//! segments, no paging, the start information's address in `ebx`.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

/// Why a vCPU's registers could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// An ioctl failed.
    #[error("{what}")]
    Kvm {
        /// What it was to do.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM took only the first of the model-specific registers.
    #[error("KVM refuses the model-specific register {0:#x}")]
    Msr(u32),
}

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, everything write-back: a guest without firmware finds no caching otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PROTECTED: u64 = 1;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).expect("two entries fit");
    let taken = vcpu.set_msrs(&msrs).map_err(|source| RegisterError::Kvm {
        what: "set model-specific registers",
        source,
    })?;
    match entries.get(taken) {
        Some(refused) => Err(RegisterError::Msr(refused.index)),
        None => Ok(()),
    }
}

pub(super) fn set_entry(
    vcpu: &VcpuFd,
    entry: GuestAddress,
    start_info: GuestAddress,
) -> Result<(), RegisterError> {
    let kvm = |what| move |source| RegisterError::Kvm { what, source };
    let mut sregs = vcpu.get_sregs().map_err(kvm("get segment registers"))?;
    let code = segment(0x8, 0xb);
    let data = segment(0x10, 0x3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        s: 0,
        g: 0,
        db: 0,
        ..segment(0x18, 0xb)
    };
    sregs.cr0 = CR0_PROTECTED;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set segment registers"))?;

    let regs = kvm_regs {
        rip: entry.0,
        rbx: start_info.0,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("set registers"))
}

/// A flat 4 GiB segment of the given type (Intel SDM volume 3 §3.4.5.1).
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
