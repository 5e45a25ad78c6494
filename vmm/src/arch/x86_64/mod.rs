//! x86_64: a PC without firmware, PCI and ACPI, entered by the PVH protocol.

mod cpuid;
mod layout;
mod mptable;
mod regs;
mod start_info;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::GuestAddress;

pub use cpuid::CpuidError;
pub use layout::{DEVICE_BASE, FIRST_DEVICE_GSI, LAST_DEVICE_GSI, ram_ranges};
pub use mptable::MpTableError;
pub use regs::RegisterError;
pub use start_info::StartInfoError;

use crate::memory::Ram;

/// What is appended to every guest's command line. Hull's guest kernel has no PIT to check its
/// timer interrupt against.
pub const CMDLINE: &str = "no_timer_check";

/// Why the machine could not be given the architecture's parts.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// An ioctl failed.
    #[error("{what}")]
    Kvm {
        /// What it was to do.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// The kernel's start information.
    #[error(transparent)]
    StartInfo(#[from] StartInfoError),
    /// Registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
}

/// Creates the interrupt controllers; before any vCPU.
///
/// # Errors
/// When KVM refuses.
pub fn prepare_vm(vm: &VmFd) -> Result<(), ArchError> {
    let kvm = |what| move |source| ArchError::Kvm { what, source };
    // Intel processors without unrestricted guests need these two, out of the guest's way.
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm("set the identity map"))?;
    vm.set_tss_address(layout::TSS)
        .map_err(kvm("set the task state segment"))?;
    vm.create_irq_chip()
        .map_err(kvm("create the interrupt controllers"))
}

/// Writes the tables the guest's kernel reads.
///
/// # Errors
/// When memory is too small for them.
pub fn write_tables(
    ram: &Ram,
    vcpus: u8,
    cmdline: &str,
    initrd: Option<(GuestAddress, u64)>,
) -> Result<(), ArchError> {
    mptable::write(ram, vcpus)?;
    Ok(start_info::write(ram, cmdline, initrd)?)
}

/// Sets a vCPU up; the first one to enter the kernel at `entry`, the others to wait for it.
///
/// # Errors
/// When KVM refuses.
pub fn prepare_vcpu(
    kvm: &Kvm,
    vm: &VmFd,
    vcpu: &VcpuFd,
    id: u8,
    count: u8,
    entry: GuestAddress,
) -> Result<(), ArchError> {
    let deadline_timer = vm.check_extension(Cap::TscDeadlineTimer);
    cpuid::set(kvm, vcpu, id, count, deadline_timer)?;
    // After CPUID: newer kernels take only MSRs of features that are there.
    regs::set_msrs(vcpu)?;
    if id == 0 {
        regs::set_entry(vcpu, entry, GuestAddress(layout::START_INFO))?;
    }
    Ok(())
}

/// Where an initial RAM file system of `len` bytes goes: as high as it can below the gap, out of
/// the kernel's way.
#[must_use]
pub fn initrd_address(ram: &Ram, len: u64) -> Option<GuestAddress> {
    let region = vm_memory::GuestMemoryBackend::iter(ram).next()?;
    let end = vm_memory::GuestMemoryRegion::len(region);
    let address = end.checked_sub(len)? & !0xfff;
    (address > layout::HIGH_RAM).then_some(GuestAddress(address))
}
