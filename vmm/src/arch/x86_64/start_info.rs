//! What the kernel is told at its PVH entry: `struct hvm_start_info` with memory map, command line
//! and initial RAM file system (Xen, public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry,
    hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::layout::{CMDLINE, CMDLINE_LEN, HIGH_RAM, LOW_RAM_END, MEMORY_MAP, MODULES, START_INFO};
use crate::memory::Ram;

/// Why the kernel could not be told.
#[derive(Debug, thiserror::Error)]
pub enum StartInfoError {
    /// The command line does not fit.
    #[error("kernel command line of {0} bytes exceeds {CMDLINE_LEN}")]
    CmdlineTooLong(usize),
    /// The guest's memory is smaller than the structures.
    #[error("write the kernel's start information")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes all of it.
pub(super) fn write(
    ram: &Ram,
    cmdline: &str,
    initrd: Option<(GuestAddress, u64)>,
) -> Result<(), StartInfoError> {
    if cmdline.len() >= CMDLINE_LEN {
        return Err(StartInfoError::CmdlineTooLong(cmdline.len()));
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    ram.write_obj(0_u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;

    let map = memory_map(ram);
    for (at, entry) in (MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(&map)
    {
        ram.write_obj(*entry, GuestAddress(at))?;
    }
    if let Some((address, size)) = initrd {
        let module = hvm_modlist_entry {
            paddr: address.0,
            size,
            ..Default::default()
        };
        ram.write_obj(module, GuestAddress(MODULES))?;
    }
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("a few entries"),
        ..Default::default()
    };
    ram.write_obj(info, GuestAddress(START_INFO))?;
    Ok(())
}

/// RAM but for the old PC's hole, where the MP table is.
fn memory_map(ram: &Ram) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size| hvm_memmap_table_entry {
        addr,
        size,
        type_: XEN_HVM_MEMMAP_TYPE_RAM,
        ..Default::default()
    };
    let mut map = vec![entry(0, LOW_RAM_END)];
    for region in ram.iter() {
        let start = region.start_addr().0.max(HIGH_RAM);
        let end = region.start_addr().0 + region.len();
        map.push(entry(start, end.saturating_sub(start)));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ram_ranges;
    use crate::memory;

    #[test]
    fn the_kernel_finds_memory_and_command_line() {
        let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
        write(&ram, "quiet", Some((GuestAddress(0x200_0000), 77))).unwrap();

        let info: hvm_start_info = ram.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.memmap_entries, info.nr_modules),
            (0x336e_c578, 2, 1)
        );
        let mut text = [0; 6];
        ram.read_slice(&mut text, GuestAddress(info.cmdline_paddr))
            .unwrap();
        assert_eq!(&text, b"quiet\0");
        let module: hvm_modlist_entry = ram.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x200_0000, 77));
    }

    #[test]
    fn a_command_line_too_long_is_refused() {
        let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
        let result = write(&ram, &"x".repeat(CMDLINE_LEN), None);
        assert!(matches!(result, Err(StartInfoError::CmdlineTooLong(_))));
    }
}
