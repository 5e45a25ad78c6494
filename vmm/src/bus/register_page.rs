//! What a driver reads of a device's registers, in memory that is the guest's to read.
//!
//! ```text
//!            load ──▶ the page, by the processor itself
//!  driver ──▶
//!            store ─▶ KVM ──▶ BusDevice::write ──▶ the page
//! ```
//! To leave the guest for a load costs as much as a request does, and Linux reads `InterruptStatus` at
//! every interrupt. So KVM has the page as memory that the guest can't write (KVM_MEM_READONLY, KVM
//! api.rst 4.35); a store still leaves it.
//!
//! The order of a driver's accesses is kept: before a store is over, what it changes of other registers
//! is in the page. The configuration space may change while a driver reads it in parts; as the bus
//! would have it, it then finds another `ConfigGeneration`, or hears of the change right after.
//!
//! Threat: none from here. The guest reads what it could read by leaving, and can't write.

use std::sync::atomic::Ordering;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// How many words of a page there are: the registers, and as much of the configuration space as any
/// device has. What is behind them reads zero.
const WORDS: usize = 0x200 / 4;

/// The page of one device.
#[derive(Debug)]
pub struct RegisterPage {
    pages: Ram,
    start: GuestAddress,
    /// What is there, so that only what changes is stored.
    shown: [u32; WORDS],
}

impl RegisterPage {
    /// Where the configuration space begins (virtio 1.3 §4.2.2).
    pub const CONFIG: u64 = 0x100;

    /// The one at `start`, if all of it lies in `pages`, which nobody has written yet.
    #[must_use]
    pub fn new(pages: Ram, start: u64) -> Option<Self> {
        let start = GuestAddress(start);
        pages.check_range(start, 4 * WORDS).then_some(Self {
            pages,
            start,
            shown: [0; WORDS],
        })
    }

    /// Has the driver read `word` at `offset`, a multiple of four.
    pub fn show(&mut self, offset: u64, word: u32) {
        let index = usize::try_from(offset / 4).ok();
        let Some(shown) = index.and_then(|index| self.shown.get_mut(index)) else {
            return;
        };
        if *shown != word {
            *shown = word;
            // Whole, and before the interrupt that may tell of it.
            let address = self.start.unchecked_add(offset);
            (self.pages.store(word.to_le(), address, Ordering::SeqCst))
                .expect("`new` has seen that it is there");
        }
    }

    /// Has the driver read the configuration space as `read` fills it in from its start; what it leaves is
    /// zero.
    pub fn show_config(&mut self, read: impl FnOnce(&mut [u8])) {
        // As long as any device's.
        let mut config = [0; 0x100];
        read(&mut config);
        let (words, _) = config.as_chunks();
        for (offset, word) in (Self::CONFIG..).step_by(4).zip(words) {
            self.show(offset, u32::from_le_bytes(*word));
        }
    }

    /// What the driver reads.
    #[cfg(test)]
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let address = self.start.unchecked_add(offset);
        u32::from_le(self.pages.load(address, Ordering::SeqCst).unwrap())
    }
}
