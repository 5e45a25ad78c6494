//! The guest's physical address space.
//!
//! ```text
//! 0x0800_0000   GIC: distributor; with GICv2 the processors' interface at 0x0801_0000
//! 0x0a00_0000   GICv3: redistributors, 128 KiB each
//! 0x0c00_0000   serial port, real-time clock, 4 KiB each
//! 0x1000_0000   virtio devices, 4 KiB each
//! 0x1010_0000   the guest's kernel's last words
//! 0x4000_0000   RAM: the device tree in its first 2 MiB, then the kernel; behind it, at a multiple of
//!               1 GiB, what may be plugged
//! ```
//!
//! Interrupts that are shared by all processors (SPIs) have their GSI's number (KVM's default
//! routing): the GIC calls them 32 more.

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::memory::Ram;

/// Processors, of which a redistributor each has room. As many as on x86_64, so that a machine's
/// description holds on both.
pub const MAX_VCPUS: u8 = 254;

pub(super) const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
pub(super) const GIC_V3_DISTRIBUTOR_LEN: u64 = 0x1_0000;
pub(super) const GIC_V2_DISTRIBUTOR_LEN: u64 = 0x1000;
pub(super) const GIC_V2_INTERFACE: u64 = 0x0801_0000;
pub(super) const GIC_V2_INTERFACE_LEN: u64 = 0x2000;
pub(super) const GIC_V3_REDISTRIBUTORS: u64 = 0x0a00_0000;
/// Of one processor.
pub(super) const GIC_V3_REDISTRIBUTOR_LEN: u64 = 0x2_0000;

pub(super) const SERIAL: u64 = 0x0c00_0000;
pub(super) const CLOCK: u64 = 0x0c00_1000;
/// Bytes of each of them, and of each virtio device.
pub(super) const SLOT_LEN: u64 = 0x1000;

/// Registers of the virtio devices.
pub const DEVICE_BASE: u64 = 0x1000_0000;

/// Where the guest's kernel says why it panicked.
pub const LAST_WORDS: u64 = 0x1010_0000;

/// Whether the guest may read virtio's registers from memory that the VMM writes. Its loads from a device's
/// addresses pass the caches by, with what the VMM has written in them (Arm ARM, "Mismatched memory
/// attributes").
pub const REGISTERS_IN_MEMORY: bool = false;

/// The console's interrupt.
pub const SERIAL_GSI: u32 = 1;
/// Interrupts of the virtio devices.
const FIRST_DEVICE_GSI: u32 = 16;
/// How many virtio devices there can be: one for each interrupt.
pub const MAX_DEVICES: usize = 64;
/// All interrupts that the GIC has, the 32 included that each processor has for itself.
pub(super) const INTERRUPTS: u32 = 128;

/// Memory.
pub(super) const RAM: u64 = 0x4000_0000;
/// The device tree.
pub(super) const FDT: u64 = RAM;
/// Room for it, which is all that the kernel maps of it.
pub(super) const FDT_LEN: u64 = 0x20_0000;
/// Where a kernel's image begins, without the offset in its header.
pub(super) const KERNEL: u64 = FDT + FDT_LEN;
/// Above this the kernel finds no initial RAM file system: 32 GiB around its own image.
pub(super) const INITRD_END: u64 = RAM + (32 << 30);

/// What memory that may be plugged begins at a multiple of: any memory block of Linux, any large page.
const HOTPLUG_ALIGNMENT: u64 = 1 << 30;

/// The interrupts of the virtio devices, in their order.
pub fn device_gsis() -> impl Iterator<Item = u32> {
    (FIRST_DEVICE_GSI..).take(MAX_DEVICES)
}

/// The range that `bytes` of RAM lie at.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let length = usize::try_from(bytes).expect("64-bit host");
    vec![(GuestAddress(RAM), length)]
}

/// The range that `bytes` of memory that may be plugged lie at, above `ram` bytes of RAM; `None` when
/// addresses end before it does.
#[must_use]
pub fn hotplug_range(ram: u64, bytes: u64) -> Option<(GuestAddress, usize)> {
    let start = (RAM.checked_add(ram)?).checked_next_multiple_of(HOTPLUG_ALIGNMENT)?;
    start.checked_add(bytes)?;
    Some((GuestAddress(start), usize::try_from(bytes).ok()?))
}

/// What is filled whatever the guest does: by the loader, of a kernel's file of `bytes` bytes.
#[must_use]
pub fn filled_first(_: &Ram, bytes: u64) -> [Range<GuestAddress>; 1] {
    [GuestAddress(KERNEL)..GuestAddress(KERNEL.saturating_add(bytes))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lies_on_anything_else() {
        let redistributors = u64::from(MAX_VCPUS) * GIC_V3_REDISTRIBUTOR_LEN;
        let devices = MAX_DEVICES as u64 * SLOT_LEN;
        let parts = [
            (GIC_DISTRIBUTOR, GIC_V3_DISTRIBUTOR_LEN),
            (GIC_V2_INTERFACE, GIC_V2_INTERFACE_LEN),
            (GIC_V3_REDISTRIBUTORS, redistributors),
            (SERIAL, SLOT_LEN),
            (CLOCK, SLOT_LEN),
            (DEVICE_BASE, devices),
            (FDT, FDT_LEN),
            (KERNEL, 16 << 20),
        ];
        for ((start, length), (next, _)) in parts.iter().zip(&parts[1..]) {
            assert!(start + length <= *next, "{start:#x} + {length:#x}");
        }
        // Documentation/virt/kvm/devices/arm-vgic-v3.rst, booting.rst.
        for (address, alignment) in [
            (GIC_DISTRIBUTOR, 0x1_0000),
            (GIC_V3_REDISTRIBUTORS, 0x1_0000),
            (FDT, 8),
            (KERNEL, 0x20_0000),
        ] {
            assert_eq!(address % alignment, 0, "{address:#x}");
        }
    }

    #[test]
    fn every_device_has_an_interrupt_of_its_own_that_the_gic_has() {
        const { assert!(SERIAL_GSI < FIRST_DEVICE_GSI) };
        let last = device_gsis().last().unwrap();
        assert!(last + 32 < INTERRUPTS);
        assert_eq!(device_gsis().count(), MAX_DEVICES);
        // arm-vgic-v3.rst, KVM_DEV_ARM_VGIC_GRP_NR_IRQS.
        assert!((64..=1024).contains(&INTERRUPTS) && INTERRUPTS.is_multiple_of(32));
    }

    #[test]
    fn what_may_be_plugged_lies_above_all_memory_and_on_a_boundary() {
        for (ram, expected) in [(16 << 20, 2), (1 << 30, 2), (3 << 29, 3), (64 << 30, 65)] {
            let (start, length) = hotplug_range(ram, 3 << 30).unwrap();
            assert_eq!((start.0, length), (expected << 30, 3 << 30));
        }
        assert_eq!(hotplug_range(1 << 30, u64::MAX), None);
        assert_eq!(hotplug_range(u64::MAX, 1), None);
    }

    #[test]
    fn all_memory_is_in_one_range() {
        for bytes in [16 << 20, 4 << 30, 64 << 30] {
            let expected = usize::try_from(bytes).unwrap();
            assert_eq!(ram_ranges(bytes), [(GuestAddress(RAM), expected)]);
        }
    }
}
