//! What answers at which guest address: a slot of 4 KiB for each memory-mapped device.

mod register_page;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_control::DeviceCounters;
use vmm_sys_util::eventfd::EventFd;

pub use self::register_page::RegisterPage;

/// Bytes of each device's registers and configuration space.
pub const SLOT_LEN: u64 = 0x1000;

/// Something with registers. Offsets are relative to its slot; the data is 1 to 8 bytes.
pub trait BusDevice: Send {
    /// Fills `data`, which is zero when called.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the event loop sees it.
pub trait Slot: BusDevice {
    /// Has what the driver reads in `page`, too, from now on, which KVM may then show it.
    fn show_in(&mut self, page: RegisterPage);

    /// The notification of every queue.
    fn notifications(&self) -> &[EventFd];

    /// Whether a daemon or the host's kernel, and not the event loop, serves the notifications.
    fn served_elsewhere(&self) -> bool;

    /// Whether a thread of the device's own serves the notifications of queue `queue`.
    fn has_thread(&self, _queue: usize) -> bool {
        false
    }

    /// What raises the device's interrupt, to be bound to its GSI.
    fn line(&self) -> &EventFd;

    /// Readable while there is work for [`Slot::backend_ready`]: never while the device is idle.
    fn backend(&self) -> Option<BorrowedFd<'_>>;

    /// The driver notified queue `index`.
    fn kicked(&mut self, index: usize);

    /// The backend is readable.
    fn backend_ready(&mut self);

    /// What has happened to the device so far.
    fn counters(&self) -> DeviceCounters;
}

/// A device in its slot. A vCPU takes the lock for one register, the event loop for one queue; no
/// one holds two of them.
pub type SharedSlot = Arc<Mutex<dyn Slot>>;

/// The memory-mapped devices: virtio's side by side from `base` on, and the few others.
pub struct Bus {
    base: u64,
    slots: Vec<SharedSlot>,
    others: Vec<(u64, Mutex<Box<dyn BusDevice>>)>,
}

impl Bus {
    /// Puts the devices at `base`, in their order.
    #[must_use]
    pub fn new(base: u64, slots: Vec<SharedSlot>) -> Self {
        Self {
            base,
            slots,
            others: Vec::new(),
        }
    }

    /// Puts a device that is none of virtio's at an address of its own. The event loop has nothing to
    /// do with it.
    pub fn attach(&mut self, address: u64, device: Box<dyn BusDevice>) {
        self.others.push((address, Mutex::new(device)));
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Where the devices are, in their order.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        (0..)
            .zip(&self.slots)
            .map(|(slot, _)| self.base + slot * SLOT_LEN)
    }

    /// Works with device `index`, which nobody else does meanwhile.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn with<R>(&self, index: usize, work: impl FnOnce(&mut dyn Slot) -> R) -> R {
        let mut slot = lock(&self.slots[index]);
        work(&mut *slot)
    }

    /// A guest's load. Where nothing is, all bits are set, as on hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((slot, offset)) = self.find(address) {
            data.fill(0);
            lock(slot).read(offset, data);
        } else if let Some((device, offset)) = self.find_other(address) {
            data.fill(0);
            lock_other(device).read(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    /// A guest's store. Where nothing is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.find(address) {
            lock(slot).write(offset, data);
        } else if let Some((device, offset)) = self.find_other(address) {
            lock_other(device).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&SharedSlot, u64)> {
        let distance = address.checked_sub(self.base)?;
        let index = usize::try_from(distance / SLOT_LEN).ok()?;
        Some((self.slots.get(index)?, distance % SLOT_LEN))
    }

    fn find_other(&self, address: u64) -> Option<(&Mutex<Box<dyn BusDevice>>, u64)> {
        self.others.iter().find_map(|(base, device)| {
            let offset = address.checked_sub(*base)?;
            (offset < SLOT_LEN).then_some((device, offset))
        })
    }
}

/// A panic while it was held leaves the device in a state its driver may have to reset, no worse.
fn lock(slot: &SharedSlot) -> MutexGuard<'_, dyn Slot + 'static> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_other(device: &Mutex<Box<dyn BusDevice>>) -> MutexGuard<'_, Box<dyn BusDevice>> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device, offset and data of each store.
    type Stores = Arc<Mutex<Vec<(u8, u64, Vec<u8>)>>>;

    /// Reads as its number, and remembers what was written.
    struct Probe {
        number: u8,
        written: Stores,
        line: EventFd,
    }

    impl BusDevice for Probe {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            assert!(data.iter().all(|&byte| byte == 0));
            data[0] = self.number;
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            let written = (self.number, offset, data.to_vec());
            self.written.lock().unwrap().push(written);
        }
    }

    impl Slot for Probe {
        fn show_in(&mut self, _: RegisterPage) {}
        fn notifications(&self) -> &[EventFd] {
            &[]
        }
        fn served_elsewhere(&self) -> bool {
            false
        }
        fn line(&self) -> &EventFd {
            &self.line
        }
        fn backend(&self) -> Option<BorrowedFd<'_>> {
            None
        }
        fn kicked(&mut self, _: usize) {}
        fn backend_ready(&mut self) {}
        fn counters(&self) -> DeviceCounters {
            DeviceCounters::default()
        }
    }

    const BASE: u64 = 0xd000_0000;

    fn bus() -> (Bus, Stores) {
        let written = Arc::new(Mutex::new(Vec::new()));
        let slots = (1..=2).map(|number| -> SharedSlot {
            Arc::new(Mutex::new(Probe {
                number,
                written: Arc::clone(&written),
                line: EventFd::new(0).unwrap(),
            }))
        });
        (Bus::new(BASE, slots.collect()), written)
    }

    #[test]
    fn each_address_belongs_to_one_slot() {
        let (bus, written) = bus();
        assert_eq!(bus.addresses().collect::<Vec<_>>(), [BASE, BASE + 0x1000]);
        bus.write(BASE + 0xfff, &[7]);
        bus.write(BASE + 0x1000, &[8, 9]);
        let expected = [(1, 0xfff, vec![7]), (2, 0, vec![8, 9])];
        assert_eq!(*written.lock().unwrap(), expected);
        let mut data = [0xaa; 4];
        bus.read(BASE + 0x1ffc, &mut data);
        assert_eq!(data, [2, 0, 0, 0]);
    }

    #[test]
    fn a_device_apart_answers_at_its_own_address_and_nowhere_else() {
        const APART: u64 = 0x0c00_0000;
        let (mut bus, written) = bus();
        bus.attach(
            APART,
            Box::new(Probe {
                number: 9,
                written: Arc::clone(&written),
                line: EventFd::new(0).unwrap(),
            }),
        );
        let read = |address| {
            let mut data = [0xaa; 2];
            bus.read(address, &mut data);
            data
        };
        assert_eq!([APART, APART + 0xfff].map(read), [[9, 0]; 2]);
        assert_eq!([APART - 1, APART + 0x1000].map(read), [[0xff; 2]; 2]);
        assert_eq!(read(BASE), [1, 0]);
        bus.write(APART + 8, &[7]);
        bus.write(APART + 0x1000, &[7]);
        assert_eq!(*written.lock().unwrap(), [(9, 8, vec![7])]);
    }

    #[test]
    fn where_nothing_is_loads_read_ones_and_stores_vanish() {
        let (bus, written) = bus();
        for address in [0, BASE - 1, BASE + 0x2000, u64::MAX] {
            let mut data = [0; 8];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 8], "{address:#x}");
            bus.write(address, &data);
        }
        assert!(written.lock().unwrap().is_empty());
    }
}
