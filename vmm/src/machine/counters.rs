//! Counts of the machine's life. Relaxed: each is a number of its own, and nothing depends on two.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use vmm_control::DeviceCounters;

/// See [`vmm_control::Counters`], field by field.
#[derive(Debug)]
pub(super) struct Counters {
    begin: Instant,
    /// One for each vCPU, so that no two write to one cache line.
    exits: Vec<Exits>,
    notifications: AtomicU64,
    boot_to_run_us: AtomicU64,
    boot_to_dial_us: AtomicU64,
    memory_requested: AtomicU64,
    memory_plugged: AtomicU64,
    /// As they were when somebody asked last.
    devices: Mutex<Vec<DeviceCounters>>,
}

/// Why one vCPU came out of the guest, and how often.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Exits {
    pub(super) io: AtomicU64,
    pub(super) mmio: AtomicU64,
    pub(super) other: AtomicU64,
}

impl Counters {
    /// Begins to count, and to measure time.
    pub(super) fn start(vcpus: u8) -> Self {
        Self {
            begin: Instant::now(),
            exits: (0..vcpus).map(|_| Exits::default()).collect(),
            notifications: AtomicU64::new(0),
            boot_to_run_us: AtomicU64::new(0),
            boot_to_dial_us: AtomicU64::new(0),
            memory_requested: AtomicU64::new(0),
            memory_plugged: AtomicU64::new(0),
            devices: Mutex::default(),
        }
    }

    /// The counts of vCPU `id`.
    pub(super) fn exits(&self, id: u8) -> &Exits {
        &self.exits[usize::from(id)]
    }

    /// The loop serves a queue's notification.
    pub(super) fn notified(&self) {
        count(&self.notifications);
    }

    /// The vCPUs run now.
    pub(super) fn running(&self) {
        self.boot_to_run_us.store(self.elapsed_us(), Relaxed);
    }

    /// The guest dialled now; the first time counts.
    pub(super) fn dialled(&self) {
        let _ = self
            .boot_to_dial_us
            .compare_exchange(0, self.elapsed_us(), Relaxed, Relaxed);
    }

    /// So many bytes should be plugged now, and so many are.
    pub(super) fn memory(&self, requested: u64, plugged: u64) {
        self.memory_requested.store(requested, Relaxed);
        self.memory_plugged.store(plugged, Relaxed);
    }

    /// This is what the devices have counted so far; `None` as far as was said before.
    pub(super) fn devices(&self, now: impl Iterator<Item = Option<DeviceCounters>>) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = mem::take(&mut *devices).into_iter();
        let counted = now.map(|now| {
            let before = before.next();
            now.or(before).unwrap_or_default()
        });
        *devices = counted.collect();
    }

    pub(super) fn read(&self) -> vmm_control::Counters {
        let sum = |field: fn(&Exits) -> &AtomicU64| {
            (self.exits.iter()).fold(0, |sum: u64, exits| {
                sum.wrapping_add(field(exits).load(Relaxed))
            })
        };
        vmm_control::Counters {
            exits_io: sum(|exits| &exits.io),
            exits_mmio: sum(|exits| &exits.mmio),
            exits_other: sum(|exits| &exits.other),
            notifications: self.notifications.load(Relaxed),
            boot_to_run_us: self.boot_to_run_us.load(Relaxed),
            boot_to_dial_us: self.boot_to_dial_us.load(Relaxed),
            memory_requested: self.memory_requested.load(Relaxed),
            memory_plugged: self.memory_plugged.load(Relaxed),
            devices: (self.devices.lock())
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Never 0, which stands for "not yet".
    fn elapsed_us(&self) -> u64 {
        let micros = self.begin.elapsed().as_micros();
        u64::try_from(micros).unwrap_or(u64::MAX).max(1)
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_all_vcpus_add_up() {
        let counters = Counters::start(2);
        count(&counters.exits(0).io);
        count(&counters.exits(1).io);
        count(&counters.exits(1).mmio);
        let read = counters.read();
        assert_eq!(
            (read.exits_io, read.exits_mmio, read.exits_other),
            (2, 1, 0)
        );
    }

    #[test]
    fn the_first_dialling_counts_and_is_never_zero() {
        let counters = Counters::start(1);
        assert_eq!(counters.read().boot_to_dial_us, 0);
        counters.dialled();
        let first = counters.read().boot_to_dial_us;
        assert!(first > 0);
        std::thread::sleep(std::time::Duration::from_millis(2));
        counters.dialled();
        assert_eq!(counters.read().boot_to_dial_us, first);
    }
}
