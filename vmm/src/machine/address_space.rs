//! What lies where in the guest's physical address space, besides what the architecture fixes.
//!
//! ```text
//! RAM            what the guest starts with
//! at 1 GiB       what may be plugged
//! at 1 GiB       each file that is read in place
//! ```
//! and, where the architecture has no RAM, the registers of virtio's devices and the kernel's last words.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use vm_memory::GuestAddress;
use vmm_control::PMEM_ALIGNMENT;

use super::last_words::{self, LastWords};
use crate::arch;
use crate::bus::SLOT_LEN;
use crate::memory::{self, MemoryError, Ram};

/// Bytes of the registers of all the devices there may be.
const REGISTERS_LEN: u64 = arch::MAX_DEVICES as u64 * SLOT_LEN;

/// Why there is no place for something.
#[derive(Debug, thiserror::Error)]
pub enum AddressSpaceError {
    /// More memory to plug than there are addresses.
    #[error("{0} MiB of memory to plug are more than there are addresses for")]
    Hotplug(u32),
    /// A file that Linux could not map to its end.
    #[error(
        "file {number} to be read in place has {bytes} bytes, which is no multiple of 2 MiB; \
         `truncate --size=%2M` makes it one"
    )]
    PmemLength {
        /// Which one, from 0.
        number: usize,
        /// Its length.
        bytes: u64,
    },
    /// A file that is none.
    #[error("look at file {number} to be read in place")]
    Pmem {
        /// Which one, from 0.
        number: usize,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// More files than there are addresses.
    #[error("file {number} to be read in place lies behind all addresses")]
    PmemPlace {
        /// Which one, from 0.
        number: usize,
    },
    /// The host's part.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// All memory there is and may be.
#[derive(Debug)]
pub(super) struct AddressSpace {
    /// RAM with what may be plugged: what devices work on.
    pub(super) ram: Ram,
    /// The part of it that the guest starts with.
    pub(super) boot_ram: Ram,
    /// Where memory may be plugged, if it may.
    pub(super) hotplug: Option<(GuestAddress, usize)>,
    /// What the guest sees as memory: `ram`, where its last words go, and what it may only read.
    pub(super) shown: Ram,
    /// Where what it may only read lies, in bytes.
    pub(super) read_only: Vec<(GuestAddress, u64)>,
    /// The part of that which is files.
    pub(super) pmems: Vec<(GuestAddress, u64)>,
    /// What the kernel says last, and where.
    pub(super) last_words: LastWords,
}

impl AddressSpace {
    /// Finds a place for all of it and maps it.
    ///
    /// # Errors
    /// When there is none, the host has not enough memory, or a file is none.
    pub(super) fn new(
        memory_mib: u32,
        hotplug_mib: u32,
        files: Vec<OwnedFd>,
    ) -> Result<Self, AddressSpaceError> {
        let bytes = |mib| u64::from(mib) << 20;
        let (memory, pluggable) = (bytes(memory_mib), bytes(hotplug_mib));
        let above = arch::hotplug_range(memory, pluggable);
        let above = above.ok_or(AddressSpaceError::Hotplug(hotplug_mib))?;
        let hotplug = (hotplug_mib > 0).then_some(above);
        let ranges = arch::ram_ranges(memory);
        let ram = memory::allocate(&[ranges, hotplug.into_iter().collect()].concat())?;
        let place = GuestAddress(arch::LAST_WORDS);
        let shown = memory::beside(&ram, place, last_words::LEN as u64)?;
        let mut this = Self {
            boot_ram: without(&ram, hotplug),
            last_words: LastWords::new(shown.clone(), place),
            shown,
            ram,
            hotplug,
            read_only: Vec::new(),
            pmems: Vec::new(),
        };
        if arch::REGISTERS_IN_MEMORY {
            let registers = (GuestAddress(arch::DEVICE_BASE), REGISTERS_LEN);
            this.shown = memory::beside(&this.shown, registers.0, registers.1)?;
            this.read_only.push(registers);
        }
        let mut free = above.0.0 + pluggable;
        for (number, file) in files.into_iter().enumerate() {
            free = this.add_pmem(number, file.into(), free)?;
        }
        Ok(this)
    }

    /// Puts a file above all addresses below `free`. Returns where it ends.
    fn add_pmem(&mut self, number: usize, file: File, free: u64) -> Result<u64, AddressSpaceError> {
        let bytes = memory::file_len(&file);
        let bytes = bytes.map_err(|source| AddressSpaceError::Pmem { number, source })?;
        if bytes == 0 || !bytes.is_multiple_of(PMEM_ALIGNMENT) {
            return Err(AddressSpaceError::PmemLength { number, bytes });
        }
        let place = free.checked_next_multiple_of(1 << 30);
        let place = place.and_then(|start| Some((start, start.checked_add(bytes)?)));
        let (start, end) = place.ok_or(AddressSpaceError::PmemPlace { number })?;
        let range = (GuestAddress(start), bytes);
        self.shown = memory::beside_file(&self.shown, range.0, file)?;
        self.read_only.push(range);
        self.pmems.push(range);
        Ok(end)
    }
}

/// The part of `ram` that the guest starts with: all but what may be plugged.
fn without(ram: &Ram, hotplug: Option<(GuestAddress, usize)>) -> Ram {
    let Some((start, length)) = hotplug else {
        return ram.clone();
    };
    let (rest, _) = ram
        .remove_region(start, length as u64)
        .expect("it was made a region of its own");
    rest
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    fn file(bytes: u64) -> OwnedFd {
        let file = rustix::fs::memfd_create("pmem", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(bytes).unwrap();
        file.write_all_at(b"tide", 0x1000).unwrap();
        file.into()
    }

    #[test]
    fn nothing_overlaps_and_files_are_seen_but_are_no_ram() {
        let files = vec![file(2 << 20), file(4 << 20)];
        let space = AddressSpace::new(64, 128, files).unwrap();

        let mut ranges: Vec<_> = (space.shown.iter())
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.is_sorted_by(|a, b| a.0 + a.1 <= b.0), "{ranges:x?}");
        let (plugged, length) = space.hotplug.unwrap();
        for &(start, bytes) in &space.pmems {
            assert!(start.0 >= plugged.0 + length as u64);
            assert!(space.read_only.contains(&(start, bytes)));
            assert!(!space.ram.address_in_range(start));
            let mut text = [0; 4];
            let at = GuestAddress(start.0 + 0x1000);
            space.shown.read_slice(&mut text, at).unwrap();
            assert_eq!(&text, b"tide");
        }
        assert_eq!(space.pmems.len(), 2);
        assert_eq!(space.last_words.read(), None);
        assert_eq!(memory::len(&space.boot_ram), 64 << 20);
        assert_eq!(memory::len(&space.ram), (64 + 128) << 20);
    }

    #[test]
    fn a_file_that_linux_could_not_map_whole_is_refused() {
        for bytes in [0x2000, (2 << 20) + 1, (2 << 20) - 1] {
            let refused = AddressSpace::new(64, 0, vec![file(2 << 20), file(bytes)]);
            let refused = refused.unwrap_err().to_string();
            assert!(
                refused.contains("file 1") && refused.contains("truncate"),
                "{refused}"
            );
        }
        let directory = File::open("/").unwrap();
        let refused = AddressSpace::new(64, 0, vec![directory.into()]);
        assert!(matches!(
            refused,
            Err(AddressSpaceError::Pmem { number: 0, .. })
        ));
    }

    #[test]
    fn without_memory_to_plug_there_is_none() {
        let space = AddressSpace::new(64, 0, vec![]).unwrap();
        assert!(space.hotplug.is_none() && space.pmems.is_empty());
    }
}
