//! A queue of a disk and its worker.

use vm_memory::GuestAddress;

use super::worker::Worker;

/// One queue and its worker.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) worker: Worker,
    /// By head: where the status of the request that the worker has goes.
    pub(super) in_flight: Vec<Option<GuestAddress>>,
    /// Whether it has chains, or may have, that the limit held back. The driver need not tell again.
    pub(super) due: bool,
}

impl Lane {
    /// A queue of `size` descriptors, in which nothing is asked for.
    pub(super) fn new(worker: Worker, size: u16) -> Self {
        Self {
            worker,
            in_flight: vec![None; size.into()],
            due: false,
        }
    }

    /// Forgets every request, also the one that is being carried out.
    pub(super) fn forget(&mut self) {
        self.worker.forget();
        self.in_flight.fill(None);
        self.due = false;
    }
}
