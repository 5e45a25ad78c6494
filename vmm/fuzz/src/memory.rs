//! Guest memory that is made once, and is all zeroes again before each execution: to map and unmap it
//! each time took longer than everything else.

use std::cell::RefCell;

use hull_vmm::memory::{self, Ram};
use hull_vmm::virtio::queue::testing::Driver;
use rustix::fs::fstat;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const PAGE: u64 = 4096;

/// Descriptors of each queue whose buffers' pages are kept and not given back, as most executions need
/// them.
const DESCRIPTORS: u16 = 16;

static ZEROES: [u8; 16 * 1024] = [0; _];

thread_local! {
    /// By the sizes of their queues, of which a target has a few.
    static KEPT: RefCell<Vec<(Vec<u16>, Driver)>> = const { RefCell::new(Vec::new()) };
}

/// A driver and its memory, both as new: those of an execution before, if there was one with such queues.
pub(crate) struct Lent(Option<(Vec<u16>, Driver)>);

impl Lent {
    pub(crate) fn new(sizes: &[u16]) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| {
            let place = kept.iter().position(|(of, _)| of == sizes)?;
            Some(kept.swap_remove(place))
        });
        let (sizes, mut driver) = kept.unwrap_or_else(|| (sizes.to_vec(), Driver::new(sizes)));
        let (start, length) = driver.close(DESCRIPTORS);
        wipe(&driver.ram, start, length);
        driver.restart();
        Self(Some((sizes, driver)))
    }
}

impl std::ops::Deref for Lent {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        let (_, driver) = self.0.as_ref().expect("given back only when dropped");
        driver
    }
}

impl std::ops::DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Driver {
        let (_, driver) = self.0.as_mut().expect("given back only when dropped");
        driver
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| kept.extend(self.0.take()));
    }
}

/// Makes all of `ram`, which is one region, read as zeroes again: `length` bytes from `start` on are
/// overwritten, and if there is any page besides, those are given back.
///
/// # Panics
/// When something is left.
pub fn wipe(ram: &Ram, start: GuestAddress, length: u64) {
    let end = (start.0 + length).next_multiple_of(PAGE);
    let mut at = start.0;
    while at < end {
        let part = &ZEROES[..ZEROES.len().min((end - at) as usize)];
        ram.write_slice(part, GuestAddress(at))
            .expect("it is memory");
        at += part.len() as u64;
    }
    let region = ram.iter().next().expect("there is memory");
    let file = region.file_offset().expect("it is a file").file();
    let others = || {
        let allocated = fstat(file).expect("it is open").st_blocks as u64 * 512;
        allocated - (end - start.0)
    };
    if others() > 0 {
        let first = region.start_addr().0;
        for (from, to) in [(first, start.0), (end, first + region.len())] {
            memory::give_back(ram, GuestAddress(from), to - from).expect("it is a file");
        }
        assert_eq!(others(), 0, "nothing is left of the execution before");
    }
}
