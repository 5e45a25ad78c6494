//! What is asked of KVM: address bits, the interrupt controller, the vCPUs' features and first
//! registers.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_ARM64_SYSREG_OP0_SHIFT,
    KVM_REG_ARM64_SYSREG_OP2_SHIFT, KVM_REG_SIZE_U64, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Cap, DeviceFd, Kvm, VcpuFd};

use super::{FdtError, Gic, Kernel, TooManyVcpus, affinity, fdt, layout};
use crate::arch::Description;
use crate::bus::Bus;
use crate::kvm::{Vcpu, Vm};
use crate::legacy::{Clock, Ports, Serial};
use crate::memory::{self, Ram};

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
    /// More processors than the interrupt controller reaches.
    #[error(transparent)]
    TooManyVcpus(#[from] TooManyVcpus),
    /// KVM names processors otherwise than the device tree.
    #[error("vCPU {id} has the affinity {has:#x} and not {told:#x}, as the guest is told")]
    Affinity {
        /// Which vCPU.
        id: u8,
        /// What KVM gave it.
        has: u64,
        /// What the device tree says.
        told: u64,
    },
    /// The device tree.
    #[error(transparent)]
    Fdt(#[from] FdtError),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ArchError {
    move |source| ArchError::Kvm { what, source }
}

/// Address bits of a virtual machine that does not ask for a number of them (KVM api.rst 4.2).
const DEFAULT_BITS: u32 = 40;

/// The type of a virtual machine that has `ram`, to be created: bits of a guest-physical address.
///
/// # Errors
/// When memory ends where the host's processor cannot address it.
pub fn vm_type(kvm: &Kvm, ram: &Ram) -> Result<u64, ArchError> {
    // A host that does not say has just the default, whose number is 0.
    let (most, named) = match u32::try_from(kvm.get_host_ipa_limit()) {
        Ok(0) | Err(_) => (DEFAULT_BITS, false),
        Ok(limit) => (limit, true),
    };
    let needed = u64::BITS - memory::last_address(ram).leading_zeros();
    match needed.max(DEFAULT_BITS.min(most)) {
        bits if bits > most => Err(ArchError::MemoryTooLarge { bits: most }),
        bits if named => Ok(bits.into()),
        _ => Ok(0),
    }
}

/// The interrupt controller, which is not at work before [`Interrupts::start`].
#[derive(Debug)]
pub struct Interrupts {
    gic: Gic,
    device: DeviceFd,
}

/// Creates the interrupt controller that the host has, for `vcpus` of them. Before there is any: KVM makes no more
/// than the controller reaches, without a word on why.
///
/// # Errors
/// When KVM has none, or it does not reach as many.
pub fn prepare_vm(vm: &Vm, vcpus: u8) -> Result<Interrupts, ArchError> {
    let create = |type_| {
        let mut device = kvm_create_device {
            type_,
            ..Default::default()
        };
        vm.fd().create_device(&mut device)
    };
    // A host that emulates version 2 on hardware of version 3 has both.
    let (gic, device) = match create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        Ok(device) => (Gic::V3, device),
        Err(_) => {
            let device = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)
                .map_err(kvm("create the interrupt controller"))?;
            (Gic::V2, device)
        }
    };
    gic.admit(vcpus)?;
    Ok(Interrupts { gic, device })
}

impl Interrupts {
    /// Puts it at its address, for `vcpus` of them, which are all there will be. Before any interrupt
    /// is bound.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self, vcpus: u8) -> Result<(), ArchError> {
        let gic = self.gic;
        let [(distributor, _), (processors, _)] = gic.registers(vcpus);
        let places = match gic {
            Gic::V2 => [
                (KVM_VGIC_V2_ADDR_TYPE_DIST, distributor),
                (KVM_VGIC_V2_ADDR_TYPE_CPU, processors),
            ],
            // One region; its number of redistributors is in the address's upper bits
            // (arm-vgic-v3.rst).
            Gic::V3 => [
                (KVM_VGIC_V3_ADDR_TYPE_DIST, distributor),
                (
                    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
                    u64::from(vcpus) << 52 | processors,
                ),
            ],
        };
        for (kind, place) in places {
            self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind, &raw const place as u64)
                .map_err(kvm("place the interrupt controller"))?;
        }
        let count = layout::INTERRUPTS;
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &raw const count as u64)
            .map_err(kvm("set the number of interrupts"))?;
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
            .map_err(kvm("start the interrupt controller"))
    }

    /// `value` is the address of what the kernel reads during the call.
    fn set(&self, group: u32, attribute: u32, value: u64) -> Result<(), kvm_ioctls::Error> {
        self.device.set_device_attr(&kvm_device_attr {
            flags: 0,
            group,
            attr: attribute.into(),
            addr: value,
        })
    }
}

/// Puts the clock and, if there is one, the console where the device tree says.
pub fn attach_legacy(bus: &mut Bus, serial: Option<Serial>) -> Ports {
    bus.attach(layout::CLOCK, Box::new(Clock::default()));
    if let Some(serial) = serial {
        bus.attach(layout::SERIAL, Box::new(serial));
    }
    // There are no ports on this architecture.
    Ports::new(None)
}

/// Writes the device tree.
///
/// # Errors
/// When it does not fit.
pub fn write_tables(
    ram: &Ram,
    interrupts: &Interrupts,
    description: &Description<'_>,
) -> Result<(), ArchError> {
    fdt::write(ram, interrupts.gic, description)?;
    Ok(())
}

/// The features that each vCPU is to have, as bits of `struct kvm_vcpu_init`.
#[derive(Debug)]
pub struct Supported {
    features: u32,
}

impl Supported {
    fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }
}

/// Asks which of the processor's features KVM can give to a guest: those that programs may use. Its
/// counters of performance are left out: they tell of other guests.
///
/// # Errors
/// None on this architecture.
pub fn supported(kvm: &Kvm, _: &Ram) -> Result<Supported, ArchError> {
    let mut features = 1 << KVM_ARM_VCPU_PSCI_0_2;
    if kvm.check_extension(Cap::ArmSve) {
        features |= 1 << KVM_ARM_VCPU_SVE;
    }
    // KVM has both of them or neither (api.rst 4.82).
    if kvm.check_extension(Cap::ArmPtrAuthAddress) && kvm.check_extension(Cap::ArmPtrAuthGeneric) {
        features |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    }
    Ok(Supported { features })
}

/// Sets a vCPU up, one of `count`; the first one to enter `kernel`, the others to wait until the
/// kernel turns them on (PSCI).
///
/// # Errors
/// When KVM refuses.
pub fn prepare_vcpu(
    vm: &Vm,
    supported: &Supported,
    vcpu: &Vcpu,
    _count: u8,
    kernel: &Kernel,
) -> Result<(), ArchError> {
    let mut init = kvm_vcpu_init::default();
    vm.fd()
        .get_preferred_target(&mut init)
        .map_err(kvm("ask for the processor's kind"))?;
    init.features[0] = supported.features;
    if vcpu.id() != 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    let fd = vcpu.fd();
    fd.vcpu_init(&init).map_err(kvm("initialize a vCPU"))?;
    if supported.has(KVM_ARM_VCPU_SVE) {
        // As long vectors as the host has, from now on (api.rst 4.119).
        let feature = i32::try_from(KVM_ARM_VCPU_SVE).expect("a single digit");
        fd.vcpu_finalize(&feature)
            .map_err(kvm("settle a vCPU's vectors"))?;
    }

    let (id, told) = (vcpu.id(), affinity::of(vcpu.id()));
    let has = get(fd, MPIDR_EL1).map_err(kvm("read a vCPU's affinity"))? & affinity::FIELDS;
    if has != told {
        return Err(ArchError::Affinity { id, has, told });
    }
    if id == 0 {
        // The other registers are as booting.rst wants them when KVM resets a vCPU: EL1, interrupts
        // masked, the MMU off, x1 to x3 zero.
        set(fd, PC, kernel.entry.0).map_err(kvm("set the kernel's entry"))?;
        set(fd, X0, layout::FDT).map_err(kvm("set the device tree's address"))?;
    }
    Ok(())
}

/// Where the guest is.
#[must_use]
pub fn program_counter(vcpu: &VcpuFd) -> Option<u64> {
    get(vcpu, PC).ok()
}

/// A core register's number (api.rst 4.68): its offset in words of four bytes.
const fn core(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

const X0: u64 = core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs));
const PC: u64 = core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc));

/// Operands of `mrs`: op0 3, op2 5, the others 0.
const MPIDR_EL1: u64 = KVM_REG_ARM64
    | KVM_REG_SIZE_U64
    | KVM_REG_ARM64_SYSREG as u64
    | 3 << KVM_REG_ARM64_SYSREG_OP0_SHIFT
    | 5 << KVM_REG_ARM64_SYSREG_OP2_SHIFT;

fn get(vcpu: &VcpuFd, register: u64) -> Result<u64, kvm_ioctls::Error> {
    let mut value = [0; 8];
    vcpu.get_one_reg(register, &mut value)?;
    Ok(u64::from_le_bytes(value))
}

fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_one_reg(register, &value.to_le_bytes())?;
    Ok(())
}
