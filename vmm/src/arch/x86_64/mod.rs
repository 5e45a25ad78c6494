//! x86_64: a PC without firmware, PCI and ACPI, entered by the PVH protocol.

mod cpuid;
mod kernel;
mod layout;
mod mptable;
mod regs;
mod start_info;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

pub use cpuid::{CpuidError, Supported};
pub use kernel::{Kernel, KernelError, load_kernel};
pub use layout::{
    DEVICE_BASE, LAST_WORDS, MAX_DEVICES, MAX_VCPUS, REGISTERS_IN_MEMORY, device_gsis,
    filled_first, hotplug_range, ram_ranges,
};
pub use mptable::MpTableError;
pub use regs::RegisterError;
pub use start_info::StartInfoError;

use super::Description;
use crate::bus::Bus;
use crate::kvm::{Vcpu, Vm};
pub use crate::legacy::COM1_GSI as SERIAL_GSI;
use crate::legacy::{Ports, Serial};
use crate::loader::cmdline;
use crate::memory::{self, Ram};

/// What begins every guest's command line. Hull's guest kernel has no PIT to check its timer
/// interrupt against.
const CMDLINE: &str = "no_timer_check";

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
    /// Memory above what an address has bits for.
    #[error("the guest's memory ends above the {bits} bits of an address that this host has")]
    MemoryTooLarge {
        /// Bits of a guest-physical address.
        bits: u32,
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

/// Asks what the host's processor and KVM can do, and whether that is enough for the guest's memory.
///
/// # Errors
/// When KVM does not say, or memory ends where the processor cannot address it.
pub fn supported(kvm: &Kvm, ram: &Ram) -> Result<Supported, ArchError> {
    let supported = Supported::of(kvm)?;
    let bits = supported.address_bits();
    match memory::last_address(ram) >> bits {
        0 => Ok(supported),
        _ => Err(ArchError::MemoryTooLarge { bits }),
    }
}

/// The type of a virtual machine, to be created: there is one.
///
/// # Errors
/// None on this architecture.
pub fn vm_type(_: &Kvm, _: &Ram) -> Result<u64, ArchError> {
    Ok(0)
}

/// The interrupt controllers, which are at work.
#[derive(Debug)]
pub struct Interrupts;

impl Interrupts {
    /// Nothing is left to do when there are `vcpus`: each brought its own part.
    ///
    /// # Errors
    /// None on this architecture.
    pub fn start(&self, _vcpus: u8) -> Result<(), ArchError> {
        Ok(())
    }
}

/// Creates the interrupt controllers, for any number of vCPUs, and no timer: the guest has its local APICs'. Before
/// there is a vCPU.
///
/// # Errors
/// When KVM refuses.
pub fn prepare_vm(vm: &Vm, _vcpus: u8) -> Result<Interrupts, ArchError> {
    let kvm = |what| move |source| ArchError::Kvm { what, source };
    // Intel processors without unrestricted guests need these two, out of the guest's way.
    vm.fd()
        .set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm("set the identity map"))?;
    vm.fd()
        .set_tss_address(layout::TSS)
        .map_err(kvm("set the task state segment"))?;
    vm.fd()
        .create_irq_chip()
        .map_err(kvm("create the interrupt controllers"))?;
    leave_out_counters(vm).map_err(kvm("leave out the counters of performance"))?;
    Ok(Interrupts)
}

/// Takes the counters of performance from a guest that uses them although its CPUID has none (KVM api.rst
/// 8.35). A kernel that does not know how, before 5.18, goes by the CPUID.
fn leave_out_counters(vm: &Vm) -> Result<(), kvm_ioctls::Error> {
    let known = (vm.fd()).check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if known & KVM_PMU_CAP_DISABLE.cast_signed() == 0 {
        return Ok(());
    }
    vm.fd().enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    })
}

/// The console is at its port; nothing else has to be on the bus.
pub fn attach_legacy(_: &mut Bus, serial: Option<Serial>) -> Ports {
    Ports::new(serial)
}

/// Writes the tables the guest's kernel reads, and its command line, on which the devices are.
///
/// # Errors
/// When memory is too small for them.
pub fn write_tables(
    ram: &Ram,
    _: &Interrupts,
    description: &Description<'_>,
) -> Result<(), ArchError> {
    mptable::write(ram, description.vcpus)?;
    let devices = description.devices.iter().copied();
    let cmdline = cmdline::compose(CMDLINE, devices, description.cmdline);
    Ok(start_info::write(ram, &cmdline, description.initrd)?)
}

/// Sets a vCPU up, one of `count`; the first one to enter `kernel`, the others to wait for it.
///
/// # Errors
/// When KVM refuses.
pub fn prepare_vcpu(
    _: &Vm,
    supported: &Supported,
    vcpu: &Vcpu,
    count: u8,
    kernel: &Kernel,
) -> Result<(), ArchError> {
    supported.set(vcpu.fd(), vcpu.id(), count)?;
    // After CPUID: newer kernels take only MSRs of features that are there.
    regs::set_msrs(vcpu.fd())?;
    if vcpu.id() == 0 {
        regs::set_entry(vcpu.fd(), kernel.entry, GuestAddress(layout::START_INFO))?;
        vcpu.pre_fault(kernel.start, kernel.end);
        for range in &kernel.early {
            vcpu.pre_fault(range.start, range.end);
        }
    }
    Ok(())
}

/// Where the guest is.
#[must_use]
pub fn program_counter(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_regs().ok().map(|regs| regs.rip)
}

/// Where an initial RAM file system of `len` bytes goes, or `None` when it does not fit: as high as
/// it can below the gap, above the kernel.
#[must_use]
pub fn initrd_address(ram: &Ram, kernel: &Kernel, len: u64) -> Option<GuestAddress> {
    let low = ram.iter().next()?;
    let address = low.len().checked_sub(len)? & !0xfff;
    (address >= kernel.end.0).then_some(GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initial_ram_file_system_lies_below_the_end_of_memory_and_above_the_kernel() {
        let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
        let kernel = Kernel {
            start: GuestAddress(layout::HIGH_RAM),
            entry: GuestAddress(layout::HIGH_RAM),
            end: GuestAddress(30 << 20),
            early: layout::early(&ram, GuestAddress(layout::HIGH_RAM)),
        };
        let address = |len| initrd_address(&ram, &kernel, len).map(|address| address.0);
        assert_eq!(address(1), Some((64 << 20) - 0x1000));
        assert_eq!(address(0x1000), Some((64 << 20) - 0x1000));
        assert_eq!(address(34 << 20), Some(30 << 20));
        assert_eq!(address((34 << 20) + 1), None);
        assert_eq!(address(u64::MAX), None);
    }
}
