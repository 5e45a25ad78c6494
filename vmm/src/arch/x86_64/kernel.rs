//! The kernel's file: an uncompressed ELF that says where its PVH entry is.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use super::layout;
use crate::memory::Ram;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an uncompressed kernel, or one that is larger than memory.
    #[error("load the kernel, which is to be an uncompressed ELF (vmlinux), into {ram_mib} MiB")]
    Load {
        /// Memory there is.
        ram_mib: u64,
        /// What is wrong with it.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// A kernel without a PVH note.
    #[error("the kernel has no PVH entry; build it with CONFIG_PVH")]
    NoPvhEntry,
}

/// A kernel in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its first address: of the code before which nothing is run.
    pub(super) start: GuestAddress,
    /// Where the first vCPU enters it.
    pub(super) entry: GuestAddress,
    /// The first address after it.
    pub(super) end: GuestAddress,
    /// What it takes of RAM and fills before anything else.
    pub(super) early: [Range<GuestAddress>; 2],
}

/// Loads the kernel where its program headers say.
///
/// # Errors
/// When it is no such kernel, or larger than the guest's memory.
pub fn load_kernel(ram: &Ram, file: OwnedFd) -> Result<Kernel, KernelError> {
    let mut file = File::from(file);
    let loaded = Elf::load(ram, None, &mut file, None).map_err(|source| KernelError::Load {
        ram_mib: crate::memory::len(ram) >> 20,
        source,
    })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(Kernel {
            start: loaded.kernel_load,
            entry,
            end: GuestAddress(loaded.kernel_end),
            early: layout::early(ram, loaded.kernel_load),
        }),
        _ => Err(KernelError::NoPvhEntry),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use vm_memory::Bytes;

    use super::*;
    use crate::memory;

    /// Where the made-up kernels want to be, and their code.
    const TEXT: u64 = 0x10_0000;
    const CODE: &[u8] = b"\xf4kernel";
    const ENTRY: u32 = 0x10_0040;

    /// An ELF with one loadable segment, of `memory_size` bytes, and perhaps a PVH note
    /// (XEN_ELFNOTE_PHYS32_ENTRY).
    fn elf(memory_size: u64, note: bool) -> OwnedFd {
        let program_header = |kind: u32, offset: u64, address: u64, file_size: u64, size: u64| {
            let words = [offset, address, address, file_size, size, 4];
            let mut bytes = [kind.to_le_bytes(), 5_u32.to_le_bytes()].concat();
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            bytes
        };
        let headers = if note { 2_u16 } else { 1 };
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([2_u16.to_le_bytes(), 62_u16.to_le_bytes()].concat());
        elf.extend(1_u32.to_le_bytes());
        for word in [TEXT, 64, 0] {
            elf.extend(u64::to_le_bytes(word));
        }
        elf.extend(0_u32.to_le_bytes());
        for half in [64, 56, headers, 0, 0, 0] {
            elf.extend(u16::to_le_bytes(half));
        }
        let code_at = 0x100;
        let note_at = 0x140;
        elf.extend(program_header(
            1,
            code_at,
            TEXT,
            CODE.len() as u64,
            memory_size,
        ));
        if note {
            elf.extend(program_header(4, note_at, 0, 24, 24));
        }
        elf.resize(0x100, 0);
        elf.extend(CODE);
        elf.resize(0x140, 0);
        elf.extend([4_u32, 8, 18].iter().flat_map(|word| word.to_le_bytes()));
        elf.extend(b"Xen\0");
        elf.extend(u64::from(ENTRY).to_le_bytes());
        file(&elf)
    }

    /// The same, with all of one program header but its type and flags replaced.
    fn elf_with(header: u64, words: [u64; 6]) -> OwnedFd {
        let mut file = File::from(elf(0x1000, true));
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        let at = usize::try_from(64 + 56 * header + 8).unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        content[at..at + bytes.len()].copy_from_slice(&bytes);
        self::file(&content)
    }

    fn file(content: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.into()
    }

    fn ram() -> Ram {
        memory::allocate(&[(GuestAddress(0), 4 << 20)]).unwrap()
    }

    #[test]
    fn a_kernel_lies_where_its_headers_say_and_tells_its_entry_and_end() {
        let ram = ram();
        let kernel = load_kernel(&ram, elf(0x1000, true)).unwrap();
        assert_eq!(kernel.entry, GuestAddress(ENTRY.into()));
        assert_eq!(kernel.end, GuestAddress(TEXT + 0x1000));
        let mut code = [0; CODE.len()];
        ram.read_slice(&mut code, GuestAddress(TEXT)).unwrap();
        assert_eq!(code, CODE);
    }

    #[test]
    fn a_kernel_without_a_pvh_note_is_refused() {
        let refused = load_kernel(&ram(), elf(0x1000, false));
        assert!(
            matches!(refused, Err(KernelError::NoPvhEntry)),
            "{refused:?}"
        );
    }

    /// Headers that point past the end of the file kept a loader reading forever.
    #[test]
    fn cve_2022_23523_headers_that_point_out_of_the_file_end_in_an_error() {
        const FAR: u64 = 1 << 40;
        for (header, words) in [
            (0, [FAR, TEXT, TEXT, 7, 0x1000, 4]),
            (0, [0x100, TEXT, TEXT, FAR, FAR, 4]),
            (0, [u64::MAX, TEXT, TEXT, u64::MAX, u64::MAX, 4]),
            (0, [0x100, TEXT, u64::MAX - 8, 7, 0x1000, 4]),
            (1, [FAR, 0, 0, 24, 24, 4]),
            (1, [0x158, 0, 0, FAR, FAR, 4]),
            (1, [0x158, 0, 0, u64::MAX, u64::MAX, 1]),
        ] {
            let loaded = load_kernel(&ram(), elf_with(header, words));
            assert!(loaded.is_err(), "{words:x?}: {loaded:?}");
        }
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        for content in [b"".as_slice(), b"MZ", &[0; 4096], b"\x7fELF\x02\x01\x01"] {
            let refused = load_kernel(&ram(), file(content));
            assert!(
                matches!(refused, Err(KernelError::Load { .. })),
                "{refused:?}"
            );
        }
    }
}
