//! Advice to the kernel about the mappings of guest memory.
#![expect(unsafe_code, reason = "madvise on memory that no slice may cover")]

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Ram;

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
