//! Guest memory.
//!
//! All of it is one `memfd`, mapped shared: a vhost-user daemon maps the same file. Its pages are
//! allocated when the guest first touches them, and are left out of core dumps.

mod mapping;

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The guest's RAM: regions of one shared memory file.
pub type Ram = GuestMemoryMmap<()>;

/// Why the guest's memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file behind it.
    #[error("make a memory file of {bytes} bytes")]
    File {
        /// How large it was to be.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its mapping.
    #[error("map {bytes} bytes of guest memory")]
    Map {
        /// How large it was to be.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: FromRangesError,
    },
    /// Keeping it out of core dumps.
    #[error("keep {bytes} bytes of guest memory out of core dumps")]
    Advise {
        /// How large it is.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Makes memory for the guest at `ranges`, each an address and a length in bytes, in rising order.
///
/// # Errors
/// When the host has not enough of it.
pub fn allocate(ranges: &[(GuestAddress, usize)]) -> Result<Ram, MemoryError> {
    let bytes: u64 = ranges.iter().map(|&(_, length)| length as u64).sum();
    let file = memory_file(bytes).map_err(|e| MemoryError::File {
        bytes,
        source: e.into(),
    })?;
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for &(address, length) in ranges {
        let file = file
            .try_clone()
            .map_err(|source| MemoryError::File { bytes, source })?;
        regions.push((address, length, Some(FileOffset::new(file, offset))));
        offset += length as u64;
    }
    let ram = Ram::from_ranges_with_files(&regions)
        .map_err(|source| MemoryError::Map { bytes, source })?;
    mapping::leave_out_of_dumps(&ram).map_err(|source| MemoryError::Advise { bytes, source })?;
    Ok(ram)
}

/// Bytes of memory.
#[must_use]
pub fn len(ram: &Ram) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// The last address that is memory; 0 without any.
#[must_use]
pub fn end(ram: &Ram) -> u64 {
    ram.last_addr().0
}

/// A file that keeps its size for good: nobody who has a descriptor of it can pull pages away from
/// under a mapping.
fn memory_file(bytes: u64) -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("hull-guest", flags)?;
    rustix::fs::ftruncate(&file, bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn regions_lie_behind_one_another_in_one_file() {
        let high = GuestAddress(1 << 32);
        let ram = allocate(&[(GuestAddress(0), 0x2000), (high, 0x1000)]).unwrap();

        ram.write_obj(7_u32, high).unwrap();

        let region = ram.iter().nth(1).unwrap();
        let offset = vm_memory::GuestMemoryRegion::file_offset(region).unwrap();
        assert_eq!(offset.start(), 0x2000);
        assert_eq!(ram.read_obj::<u32>(high).unwrap(), 7);
        assert_eq!((len(&ram), end(&ram)), (0x3000, high.0 + 0xfff));
    }
}
