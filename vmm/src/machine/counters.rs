//! Counts of the machine's life. Relaxed: each is a number of its own, and nothing depends on two.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// See [`vmm_control::Counters`], field by field.
#[derive(Debug)]
pub(super) struct Counters {
    begin: Instant,
    pub(super) exits_io: AtomicU64,
    pub(super) exits_mmio: AtomicU64,
    pub(super) exits_other: AtomicU64,
    pub(super) notifications: AtomicU64,
    boot_to_run_us: AtomicU64,
    boot_to_dial_us: AtomicU64,
}

impl Counters {
    pub(super) fn start() -> Self {
        Self {
            begin: Instant::now(),
            exits_io: AtomicU64::new(0),
            exits_mmio: AtomicU64::new(0),
            exits_other: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
            boot_to_run_us: AtomicU64::new(0),
            boot_to_dial_us: AtomicU64::new(0),
        }
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
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

    pub(super) fn read(&self) -> vmm_control::Counters {
        vmm_control::Counters {
            exits_io: self.exits_io.load(Relaxed),
            exits_mmio: self.exits_mmio.load(Relaxed),
            exits_other: self.exits_other.load(Relaxed),
            notifications: self.notifications.load(Relaxed),
            boot_to_run_us: self.boot_to_run_us.load(Relaxed),
            boot_to_dial_us: self.boot_to_dial_us.load(Relaxed),
        }
    }

    /// Never 0, which stands for "not yet".
    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}
