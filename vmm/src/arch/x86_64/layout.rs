//! The guest's physical address space.
//!
//! ```text
//! 0x0000_0000   RAM; start information and command line in its first megabyte
//! 0x000f_0000   MP table, where firmware would be
//! 0x0010_0000   RAM with the kernel, up to 3.25 GiB
//! 0xd000_0000   virtio devices, 4 KiB each
//! 0xd010_0000   the guest's kernel's last words
//! 0xfec0_0000   IOAPIC, local APICs at 0xfee0_0000 (KVM)
//! 0xfffb_c000   identity map, task state segment (KVM on older Intel processors)
//! 0x1_0000_0000 the rest of RAM, and behind it, at a multiple of 1 GiB, what may be plugged
//! ```

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::memory::{self, Ram};

/// APIC ids of 8 bits, of which 255 is everybody, and one for the IOAPIC.
pub const MAX_VCPUS: u8 = 254;

/// Registers of the virtio devices.
pub const DEVICE_BASE: u64 = 0xd000_0000;

/// Where the guest's kernel says why it panicked.
pub const LAST_WORDS: u64 = 0xd010_0000;

/// Whether the guest may read virtio's registers from memory that the VMM writes: its loads, although not
/// cached, see what is in the VMM's cache (Intel SDM vol. 3, "Methods of Caching Available").
pub const REGISTERS_IN_MEMORY: bool = true;

/// Interrupts of the virtio devices: the IOAPIC's inputs after the old PC devices', and those of two
/// that this PC does not have, the keyboard and the second serial port.
const FIRST_DEVICE_GSI: u32 = 5;
const SPARE_GSIS: [u32; 2] = [1, 3];
/// The IOAPIC's last input.
pub(super) const LAST_DEVICE_GSI: u32 = 23;

/// How many of them there can be: one for each interrupt.
pub const MAX_DEVICES: usize = (LAST_DEVICE_GSI - FIRST_DEVICE_GSI + 1) as usize + SPARE_GSIS.len();

/// `struct hvm_start_info`.
pub(super) const START_INFO: u64 = 0x6000;
/// Its memory map.
pub(super) const MEMORY_MAP: u64 = 0x7000;
/// Its module list.
pub(super) const MODULES: u64 = 0x7f00;
/// The command line.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// Room for it, with its end.
pub(super) const CMDLINE_LEN: usize = 0x1_0000;
/// End of the memory below the old PC's hole.
pub(super) const LOW_RAM_END: u64 = 0x9_fc00;
/// Where the guest's kernel looks for the MP table.
pub(super) const MP_TABLE: u64 = 0xf_0000;
/// Where Linux is linked to be (CONFIG_PHYSICAL_START).
pub(super) const LINUX: u64 = 0x100_0000;

/// Memory above the hole.
pub(super) const HIGH_RAM: u64 = 0x10_0000;

pub(super) const IDENTITY_MAP: u64 = 0xfffb_c000;
pub(super) const TSS: usize = 0xfffb_d000;

pub(super) const IOAPIC: u32 = 0xfec0_0000;
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;

const GAP_START: u64 = DEVICE_BASE;
const GAP_END: u64 = 1 << 32;

/// What memory that may be plugged begins at a multiple of: any memory block of Linux, any large page.
const HOTPLUG_ALIGNMENT: u64 = 1 << 30;

/// Bytes that Linux takes early besides what it needs for each page: per-CPU areas, hash tables, page
/// tables. Measured.
const EARLY: u64 = 4 << 20;

/// Bytes before the kernel that Linux hands out first, to itself. Measured, too.
const FIRST_FREE: u64 = 8 << 20;

/// Bytes of Linux' `struct page`, one for each page.
const STRUCT_PAGE: u64 = 64;

/// Most memory that is mapped before it is used.
const MOST_EARLY: u64 = 64 << 20;

/// The interrupts of the virtio devices, in their order.
pub fn device_gsis() -> impl Iterator<Item = u32> {
    (FIRST_DEVICE_GSI..=LAST_DEVICE_GSI).chain(SPARE_GSIS)
}

/// The ranges that `bytes` of RAM lie at: below the gap, and above 4 GiB what has no room there.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let usize_of = |bytes| usize::try_from(bytes).expect("64-bit host");
    if bytes <= GAP_START {
        vec![(GuestAddress(0), usize_of(bytes))]
    } else {
        let low = (GuestAddress(0), usize_of(GAP_START));
        vec![low, (GuestAddress(GAP_END), usize_of(bytes - GAP_START))]
    }
}

/// The range that `bytes` of memory that may be plugged lie at, above `ram` bytes of RAM; `None` when
/// addresses end before it does.
#[must_use]
pub fn hotplug_range(ram: u64, bytes: u64) -> Option<(GuestAddress, usize)> {
    let above = GAP_END.checked_add(ram.saturating_sub(GAP_START))?;
    let start = above.checked_next_multiple_of(HOTPLUG_ALIGNMENT)?;
    start.checked_add(bytes)?;
    Some((GuestAddress(start), usize::try_from(bytes).ok()?))
}

/// What Linux, which begins at `kernel`, takes of `ram` and fills before anything else: from the end
/// downwards while it boots (mm/memblock.c), and then what is free before its own image.
#[must_use]
pub(super) fn early(ram: &Ram, kernel: GuestAddress) -> [Range<GuestAddress>; 2] {
    let pages = memory::len(ram) / 4096;
    let bytes = (pages * STRUCT_PAGE + EARLY).min(MOST_EARLY);
    let end = memory::last_address(ram).saturating_add(1);
    let last = |bytes, end: u64| GuestAddress(end.saturating_sub(bytes))..GuestAddress(end);
    [last(bytes, end), last(FIRST_FREE, kernel.0)]
}

/// What is filled whatever the guest does, by the loader of a kernel's file of `bytes` bytes, about as many as
/// it fills, and by Linux.
#[must_use]
pub fn filled_first(ram: &Ram, bytes: u64) -> [Range<GuestAddress>; 2] {
    let [last, before] = early(ram, GuestAddress(LINUX));
    [
        before.start..GuestAddress(LINUX.saturating_add(bytes)),
        last,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_early_is_the_end_of_ram_and_what_is_before_the_kernel() {
        let early = |mib: u64| {
            let ram = memory::allocate(&ram_ranges(mib << 20)).unwrap();
            let kernel = GuestAddress(16 << 20);
            let [last, before] = super::early(&ram, kernel);
            assert_eq!(last.end.0, memory::last_address(&ram) + 1);
            assert_eq!(before, GuestAddress(8 << 20)..kernel);
            (last.end.0 - last.start.0) >> 20
        };
        assert_eq!((early(512), early(4096), early(64 << 10)), (12, 64, 64));
    }

    #[test]
    fn what_is_filled_first_is_what_is_taken_early_and_the_kernel() {
        let ram = memory::allocate(&ram_ranges(256 << 20)).unwrap();
        let [kernel, last] = filled_first(&ram, 20 << 20);
        assert_eq!(kernel, GuestAddress(8 << 20)..GuestAddress(36 << 20));
        assert_eq!(last, GuestAddress(248 << 20)..GuestAddress(256 << 20));
        assert_eq!(filled_first(&ram, u64::MAX)[0].end.0, u64::MAX);
    }

    #[test]
    fn what_may_be_plugged_lies_above_all_memory_and_on_a_boundary() {
        for ram in [1 << 20, GAP_START, GAP_START + 4096, 64 << 30] {
            let (start, length) = hotplug_range(ram, 3 << 30).unwrap();
            let (last, bytes) = ram_ranges(ram).pop().unwrap();
            assert!(start.0 >= last.0 + bytes as u64 && start.0 >= GAP_END);
            assert_eq!((start.0 % HOTPLUG_ALIGNMENT, length), (0, 3 << 30));
        }
        assert_eq!(hotplug_range(1 << 30, u64::MAX), None);
        assert_eq!(hotplug_range(u64::MAX, 1), None);
    }

    #[test]
    fn no_two_devices_share_an_interrupt() {
        let gsis: std::collections::HashSet<u32> = device_gsis().collect();
        assert_eq!(
            (gsis.len(), device_gsis().count()),
            (MAX_DEVICES, MAX_DEVICES)
        );
        assert!(gsis.iter().all(|&gsi| gsi <= LAST_DEVICE_GSI));
        // The timer's, the cascade's and the serial port's.
        assert!([0, 2, 4].iter().all(|gsi| !gsis.contains(gsi)));
    }

    #[test]
    fn memory_leaves_the_gap_free_and_none_is_lost() {
        for bytes in [1 << 20, GAP_START, GAP_START + 4096, 64 << 30] {
            let ranges = ram_ranges(bytes);
            assert_eq!(
                ranges.iter().map(|&(_, length)| length as u64).sum::<u64>(),
                bytes
            );
            for (address, length) in ranges {
                let end = address.0 + length as u64;
                assert!(end <= GAP_START || address.0 >= GAP_END);
            }
        }
    }
}
