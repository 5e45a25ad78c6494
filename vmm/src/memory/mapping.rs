//! Where guest memory is mapped, and advice to the kernel about it.
#![expect(
    unsafe_code,
    reason = "mappings that nothing lies in, and madvise on memory that no slice may cover"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::{LARGE_PAGE, Ram};

/// Addresses that nothing can be at, as long as it lives.
#[derive(Debug)]
pub(super) struct Filler {
    start: *mut c_void,
    length: usize,
}

impl Filler {
    fn new(start: *mut c_void, length: usize, flags: MapFlags) -> rustix::io::Result<Self> {
        // Shared, as guest memory: for private memory the kernel aligns addresses by itself.
        let flags = flags | MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: no mapping of this process is replaced: without an address the kernel chooses a free
        // range, and with one `flags` has FIXED_NOREPLACE. Nobody else knows of the new one.
        let start = unsafe { mmap_anonymous(start, length, ProtFlags::empty(), flags) }?;
        Ok(Self { start, length })
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, made in `new`, and has nothing in it.
        let unmapped = unsafe { munmap(self.start, self.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Has the next mapping of `length` bytes begin at a multiple of [`LARGE_PAGE`], as far as can be told: the kernel
/// gives addresses from high to low, so what it gave last is filled down to one. Whoever maps drops
/// what is returned afterwards.
pub(super) fn align_next(length: usize) -> Option<Filler> {
    let probe = Filler::new(ptr::null_mut(), length, MapFlags::empty()).ok()?;
    let excess = probe.start.addr() % LARGE_PAGE;
    let top = probe
        .start
        .wrapping_byte_add(length)
        .wrapping_byte_sub(excess);
    drop(probe);
    if excess == 0 {
        return None;
    }
    Filler::new(top, excess, MapFlags::FIXED_NOREPLACE).ok()
}

/// Puts large pages behind `bytes` of a region, which begin and end at multiples of [`LARGE_PAGE`]. What is in
/// them stays. The kernel makes none of where there is no page at all.
pub(super) fn collapse(region: &GuestRegionMmap, bytes: Range<usize>) -> io::Result<()> {
    let inside = u64::try_from(bytes.end).is_ok_and(|end| end <= region.len());
    assert!(inside && bytes.start <= bytes.end, "{bytes:?}");
    // SAFETY: the range is part of one live mapping, that of the region, as was just asserted. The advice
    // (Linux 6.1) changes which pages hold its contents, and neither contents nor protection.
    let done = unsafe {
        libc::madvise(
            region.as_ptr().wrapping_add(bytes.start).cast(),
            bytes.end - bytes.start,
            libc::MADV_COLLAPSE,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the guest's memory out of core dumps: it is the guest's secret, and large.
pub(super) fn leave_out_of_dumps(ram: &Ram) -> io::Result<()> {
    for region in ram.iter() {
        let length = usize::try_from(region.len()).expect("mapped, so it fits");
        // SAFETY: the range is one live mapping, that of the region. The advice changes what a core
        // dump has in it, and neither contents nor protection.
        unsafe { madvise(region.as_ptr().cast(), length, Advice::LinuxDontDump) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use crate::memory;

    #[test]
    fn guest_memory_is_marked_in_the_kernels_table_of_mappings() {
        let ram = memory::allocate(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        let start = ram.get_host_address(GuestAddress(0)).unwrap().addr();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, ours) = maps.split_once(&format!("{start:x}-")).unwrap();
        let flags = ours
            .lines()
            .find(|line| line.starts_with("VmFlags"))
            .unwrap();
        // "dd": do not dump (proc(5)).
        assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    }
}
