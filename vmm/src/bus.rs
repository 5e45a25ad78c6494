//! What answers at which guest address: one slot of 4 KiB for each memory-mapped device.

use std::sync::{Arc, Mutex, PoisonError};

use crate::virtio::mmio::Slot;

/// Bytes of each device's registers and configuration space.
const SLOT_LEN: u64 = 0x1000;

/// Where the slots from `base` on begin.
pub fn slot_addresses(base: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |slot| base + slot * SLOT_LEN)
}

/// Something with registers. Offsets are relative to its slot; the data is 1 to 8 bytes.
pub trait BusDevice: Send {
    /// Fills `data`, which is zero when called.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device in its slot. A vCPU takes the lock for one register, the event loop for one queue; no
/// one holds two of them.
pub type SharedSlot = Arc<Mutex<dyn Slot>>;

/// The memory-mapped devices, side by side from `base` on.
pub struct Bus {
    base: u64,
    slots: Vec<SharedSlot>,
}

impl Bus {
    /// Puts the devices at `base`, in their order.
    #[must_use]
    pub fn new(base: u64, slots: Vec<SharedSlot>) -> Self {
        Self { base, slots }
    }

    /// The devices in their order.
    #[must_use]
    pub fn slots(&self) -> &[SharedSlot] {
        &self.slots
    }

    /// A guest's load. Where nothing is, all bits are set, as on hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((slot, offset)) => {
                data.fill(0);
                slot.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// A guest's store. Where nothing is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.find(address) {
            slot.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&SharedSlot, u64)> {
        let distance = address.checked_sub(self.base)?;
        let index = usize::try_from(distance / SLOT_LEN).ok()?;
        Some((self.slots.get(index)?, distance % SLOT_LEN))
    }
}
