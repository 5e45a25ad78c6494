//! Guest memory.
//!
//! All of it is one `memfd`, mapped shared: a vhost-user daemon maps the same file. Its pages are
//! allocated when the guest first touches them, but for those that it is known to touch
//! ([`use_large_pages`]), and are left out of core dumps.

mod mapping;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate};
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

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
    /// A file that is to be memory.
    #[error("map a file for the guest to read in place")]
    Shown(#[source] io::Error),
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
    let failed = |source| MemoryError::Map { bytes, source };
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for &(address, length) in ranges {
        let file = file
            .try_clone()
            .map_err(|source| MemoryError::File { bytes, source })?;
        let file = FileOffset::new(file, offset);
        let _filler = mapping::align_next(length);
        regions.push(GuestRegionMmap::from_range(address, length, Some(file)).map_err(failed)?);
        offset += length as u64;
    }
    let ram = Ram::from_regions(regions).map_err(|source| failed(source.into()))?;
    mapping::leave_out_of_dumps(&ram).map_err(|source| MemoryError::Advise { bytes, source })?;
    Ok(ram)
}

/// `ram` plus `bytes` new bytes at `start`, outside of the memory file. The guest sees them, devices do not.
///
/// # Errors
/// When the host has not enough memory, or the guest has some there.
pub fn beside(ram: &Ram, start: GuestAddress, bytes: u64) -> Result<Ram, MemoryError> {
    let failed = |source| MemoryError::Map { bytes, source };
    let length = usize::try_from(bytes).map_err(|_| failed(FromRangesError::InvalidGuestRegion))?;
    let region = GuestRegionMmap::from_range(start, length, None).map_err(failed)?;
    let both = ram.insert_region(Arc::new(region));
    both.map_err(|source| failed(source.into()))
}

/// `ram`, and all of `file` at `start`, which is read in place and written by nobody: no part of the file
/// behind `ram`, and no device reaches it.
///
/// # Errors
/// When it is no regular file, or cannot be mapped there.
pub fn beside_file(ram: &Ram, start: GuestAddress, file: File) -> Result<Ram, MemoryError> {
    let bytes = file_len(&file).map_err(MemoryError::Shown)?;
    let mapping = usize::try_from(bytes)
        .map_err(io::Error::other)
        .and_then(|length| {
            let whole = Some(FileOffset::new(file, 0));
            MmapRegion::build(whole, length, libc::PROT_READ, libc::MAP_SHARED)
                .map_err(io::Error::other)
        })
        .map_err(MemoryError::Shown)?;
    let region = GuestRegionMmap::new(mapping, start);
    let failed = |source| MemoryError::Map { bytes, source };
    let region = region.ok_or_else(|| failed(FromRangesError::InvalidGuestRegion))?;
    ram.insert_region(Arc::new(region))
        .map_err(|source| failed(source.into()))
}

/// Bytes of a regular file.
///
/// # Errors
/// When it is something else.
pub fn file_len(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    Err(io::Error::other("it is no regular file"))
}

/// Bytes of memory.
#[must_use]
pub fn len(ram: &Ram) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// The last address that is memory; 0 without any.
#[must_use]
pub fn last_address(ram: &Ram) -> u64 {
    ram.last_addr().0
}

/// Bytes of a large page, on every host with pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;

/// Puts large pages behind what the guest is about to fill, whatever the host does for other memory
/// (MADV_COLLAPSE, Linux 6.1): one fault here, and one in KVM, for each in place of 512. `range` is widened to
/// whole ones. Memory that the host has no large pages for keeps the small ones.
pub fn use_large_pages(ram: &Ram, range: Range<GuestAddress>) {
    let Some((region, start)) = ram.to_region_addr(range.start) else {
        return;
    };
    let length = range.end.0.saturating_sub(range.start.0);
    let end = start.0.saturating_add(length).min(region.len());
    let [start, end, len] = [start.0, end, region.len()]
        .map(|bytes| usize::try_from(bytes).expect("mapped, so it fits"));
    let last = len / LARGE_PAGE * LARGE_PAGE;
    let whole = start / LARGE_PAGE * LARGE_PAGE..end.next_multiple_of(LARGE_PAGE).min(last);
    // A page that is read is there: of none the kernel makes no large one.
    for page in whole.clone().step_by(LARGE_PAGE) {
        let _ = region.read_obj::<u8>(MemoryRegionAddress(page as u64));
    }
    if !whole.is_empty() {
        // A host without large pages is as good, but slower.
        let _ = mapping::collapse(region, whole);
    }
}

/// Gives pages back to the host: whoever reads them next finds zeroes. `address` and `length` are
/// multiples of a page's size. Returns how many of these bytes are memory and were given back, which
/// ends at the first that are not.
///
/// The pages leave the file, and so every mapping of it: the guest's, ours and a daemon's.
///
/// # Errors
/// As `fallocate(2)`.
pub fn give_back(ram: &Ram, address: GuestAddress, length: u64) -> io::Result<u64> {
    let mut given = 0;
    while given < length {
        let Some((region, offset)) =
            (address.0.checked_add(given)).and_then(|at| ram.to_region_addr(GuestAddress(at)))
        else {
            break;
        };
        let Some(file) = region.file_offset() else {
            break;
        };
        let part = (length - given).min(region.len() - offset.0);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file.file(), hole, file.start() + offset.0, part)?;
        given += part;
    }
    Ok(given)
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
    use vm_memory::Address;

    use super::*;

    #[test]
    fn what_is_given_back_reads_as_zeroes_across_regions_and_what_is_no_memory_is_left() {
        let low = GuestAddress(0x1000);
        let ram = allocate(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x2000)]).unwrap();
        ram.write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
        assert_eq!(give_back(&ram, low, 0x2000).unwrap(), 0x2000);
        let mut bytes = [0; 0x4000];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        for (page, bytes) in bytes.chunks(0x1000).enumerate() {
            let expected = if page == 1 || page == 2 { 0 } else { 7 };
            assert!(bytes.iter().all(|&byte| byte == expected), "{page}");
        }
        assert_eq!(
            give_back(&ram, GuestAddress(0x3000), 1 << 40).unwrap(),
            0x1000
        );
        for outside in [0x4000, u64::MAX - 0xfff] {
            assert_eq!(give_back(&ram, GuestAddress(outside), 0x2000).unwrap(), 0);
        }
    }

    /// Whether the host has large pages is another matter: a test of a whole machine sees them.
    #[test]
    fn large_pages_change_nothing_of_what_is_there_and_end_with_memory() {
        let start = GuestAddress(1 << 32);
        let ram = allocate(&[(start, 3 * LARGE_PAGE + 0x1000)]).unwrap();
        let last = GuestAddress(last_address(&ram));
        let middle = start.unchecked_add(LARGE_PAGE as u64);
        ram.write_slice(&[7; 0x3000], middle).unwrap();
        ram.write_obj(9_u8, last).unwrap();
        let far = GuestAddress(u64::MAX);
        for range in [
            start..start,
            middle..last,
            start..far,
            GuestAddress(0)..far,
            last..far,
        ] {
            use_large_pages(&ram, range);
        }
        let mut bytes = [0; 0x4000];
        ram.read_slice(&mut bytes, middle).unwrap();
        assert!(bytes[..0x3000].iter().all(|&byte| byte == 7));
        assert!(bytes[0x3000..].iter().all(|&byte| byte == 0));
        assert_eq!(ram.read_obj::<u8>(last).unwrap(), 9);
    }

    #[test]
    fn regions_lie_behind_one_another_in_one_file() {
        let high = GuestAddress(1 << 32);
        let ram = allocate(&[(GuestAddress(0), 0x2000), (high, 0x1000)]).unwrap();

        ram.write_obj(7_u32, high).unwrap();

        let region = ram.iter().nth(1).unwrap();
        let offset = vm_memory::GuestMemoryRegion::file_offset(region).unwrap();
        assert_eq!(offset.start(), 0x2000);
        assert_eq!(ram.read_obj::<u32>(high).unwrap(), 7);
        assert_eq!((len(&ram), last_address(&ram)), (0x3000, high.0 + 0xfff));
    }
}
