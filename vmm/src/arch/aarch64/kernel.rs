//! The kernel's file: an uncompressed `Image` (booting.rst, "Call the kernel image").

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::memory::{self, Ram};

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("read the kernel")]
    Read(#[source] io::Error),
    /// No `Image`.
    #[error("the kernel is no uncompressed arm64 Image (arch/arm64/boot/Image)")]
    NotImage,
    /// One of before Linux 3.17, which does not say how large it is, or that is larger than it says.
    #[error("the kernel's header says {says} bytes, its file has {has}")]
    Size {
        /// Bytes in memory, as its header says.
        says: u64,
        /// Bytes of the file.
        has: u64,
    },
    /// Numbers of the other byte order.
    #[error("the kernel is big-endian")]
    BigEndian,
    /// No room.
    #[error("the kernel takes {size} bytes, of which {ram_mib} MiB of memory have no room")]
    TooLarge {
        /// Bytes in memory.
        size: u64,
        /// Memory there is.
        ram_mib: u64,
    },
    /// It cannot be copied into memory.
    #[error("copy the kernel into the guest's memory")]
    Copy(#[source] vm_memory::GuestMemoryError),
}

/// A kernel in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Where it begins and the first vCPU enters it.
    pub(super) entry: GuestAddress,
    /// The first address after it, what it clears for itself included.
    pub(super) end: GuestAddress,
}

/// Bytes of the header, and where the numbers in it are.
const HEADER_LEN: usize = 64;
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 56;
/// Of the flags.
const BIG_ENDIAN: u64 = 1;

/// Loads the kernel where it wants to be.
///
/// # Errors
/// When it is no such kernel, or larger than the guest's memory.
pub fn load_kernel(ram: &Ram, file: OwnedFd) -> Result<Kernel, KernelError> {
    let mut file = File::from(file);
    let has = file.seek(SeekFrom::End(0)).map_err(KernelError::Read)?;
    file.rewind().map_err(KernelError::Read)?;
    let mut header = [0; HEADER_LEN];
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(KernelError::NotImage),
        read => read.map_err(KernelError::Read)?,
    }
    if header[MAGIC..MAGIC + 4] != *b"ARM\x64" {
        return Err(KernelError::NotImage);
    }
    let number = |at: usize| {
        let bytes = header[at..at + 8].try_into().expect("eight of them");
        u64::from_le_bytes(bytes)
    };
    if number(FLAGS) & BIG_ENDIAN != 0 {
        return Err(KernelError::BigEndian);
    }
    let size = number(IMAGE_SIZE);
    if size < has {
        return Err(KernelError::Size { says: size, has });
    }

    let too_large = || KernelError::TooLarge {
        size,
        ram_mib: memory::len(ram) >> 20,
    };
    let entry = (layout::KERNEL.checked_add(number(TEXT_OFFSET))).ok_or_else(too_large)?;
    let end = entry.checked_add(size).ok_or_else(too_large)?;
    if end > memory::last_address(ram) + 1 {
        return Err(too_large());
    }
    let length = usize::try_from(has).map_err(|_| too_large())?;
    file.rewind().map_err(KernelError::Read)?;
    ram.read_exact_volatile_from(GuestAddress(entry), &mut file, length)
        .map_err(KernelError::Copy)?;
    Ok(Kernel {
        entry: GuestAddress(entry),
        end: GuestAddress(end),
    })
}

/// Where an initial RAM file system of `len` bytes goes, or `None` when it does not fit: as high as
/// the kernel finds it, above the kernel.
#[must_use]
pub fn initrd_address(ram: &Ram, kernel: &Kernel, len: u64) -> Option<GuestAddress> {
    let end = (memory::last_address(ram) + 1).min(layout::INITRD_END);
    let address = end.checked_sub(len)? & !0xfff;
    (address >= kernel.end.0).then_some(GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::arch::aarch64::ram_ranges;

    const CODE: &[u8] = b"kernel";

    /// An Image whose header has these numbers, with its code behind it.
    fn image(text_offset: u64, size: u64, flags: u64) -> Vec<u8> {
        let mut image = vec![0; HEADER_LEN];
        for (at, number) in [
            (TEXT_OFFSET, text_offset),
            (IMAGE_SIZE, size),
            (FLAGS, flags),
        ] {
            image[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        image[MAGIC..MAGIC + 4].copy_from_slice(b"ARM\x64");
        image.extend(CODE);
        image
    }

    fn load(ram: &Ram, content: &[u8]) -> Result<Kernel, KernelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        load_kernel(ram, file.into())
    }

    fn ram() -> Ram {
        memory::allocate(&ram_ranges(16 << 20)).unwrap()
    }

    #[test]
    fn a_kernel_lies_at_its_offset_and_keeps_room_for_what_it_clears() {
        let ram = ram();
        let kernel = load(&ram, &image(0x8_0000, 0x10_0000, 0xa)).unwrap();
        let entry = layout::KERNEL + 0x8_0000;
        assert_eq!(kernel.entry, GuestAddress(entry));
        assert_eq!(kernel.end, GuestAddress(entry + 0x10_0000));
        let mut code = [0; CODE.len()];
        ram.read_slice(&mut code, GuestAddress(entry + HEADER_LEN as u64))
            .unwrap();
        assert_eq!(code, CODE);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for content in [
            b"".as_slice(),
            b"MZ",
            &[0; 4096],
            b"\x7fELF\x02\x01\x01",
            &image(0, 0x1000, 0)[..HEADER_LEN - 1],
        ] {
            let refused = load(&ram(), content);
            assert!(matches!(refused, Err(KernelError::NotImage)), "{refused:?}");
        }
    }

    #[test]
    fn an_image_of_the_other_byte_order_is_refused() {
        let refused = load(&ram(), &image(0, 0x1000, 1));
        assert!(matches!(refused, Err(KernelError::BigEndian)));
    }

    #[test]
    fn an_image_that_is_larger_than_it_says_is_refused() {
        for size in [0, 1, (HEADER_LEN + CODE.len()) as u64 - 1] {
            let refused = load(&ram(), &image(0, size, 0));
            assert!(matches!(refused, Err(KernelError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn an_image_without_room_is_refused_wherever_it_wants_to_be() {
        for (offset, size) in [
            (0, (14 << 20) + 1),
            (13 << 20, 2 << 20),
            (u64::MAX, 0x1000),
            (0, u64::MAX),
            (1 << 40, 0x1000),
            (u64::MAX - layout::KERNEL, 0x1000),
        ] {
            let refused = load(&ram(), &image(offset, size, 0));
            assert!(
                matches!(refused, Err(KernelError::TooLarge { .. })),
                "{offset:#x}, {size:#x}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_initial_ram_file_system_lies_where_the_kernel_finds_it() {
        let kernel = Kernel {
            entry: GuestAddress(layout::KERNEL),
            end: GuestAddress(layout::RAM + (30 << 20)),
        };
        let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
        let address = |len| initrd_address(&ram, &kernel, len).map(|address| address.0);
        let end = layout::RAM + (64 << 20);
        assert_eq!(address(1), Some(end - 0x1000));
        assert_eq!(address(34 << 20), Some(kernel.end.0));
        assert_eq!(address((34 << 20) + 1), None);
        assert_eq!(address(u64::MAX), None);

        let beyond = (GuestAddress(layout::INITRD_END), 0x1000);
        let large = memory::allocate(&[ram_ranges(64 << 20)[0], beyond]).unwrap();
        let address = initrd_address(&large, &kernel, 0x1000).unwrap();
        assert_eq!(address.0, layout::INITRD_END - 0x1000);
    }
}
