//! virtio-net (virtio 1.3 §5.1): a network card whose other end is a tap.
//!
//! The tap may come, and be replaced, while the machine runs: container engines make the network of
//! a container that exists. Without one, what the driver sends is lost, as with no cable.
//!
//! ```text
//!             ┌─ pair 1 ◀── event loop ── queue 1 of the tap
//!  driver ────┼─ pair 2 ◀── its thread ── queue 2           as many as the driver has asked for (`multi_queue`)
//!             ├─ …
//!             └─ control queue ◀── event loop               only where there are several
//! ```
//! A pair of queues (`pair`) is served on its own, the first by the event loop and each further one by a
//! thread (`threaded_pair`): a machine whose card has one has neither threads nor control queue.
//!
//! Threat: the driver, and whoever sends to the tap. The driver's headers are checked
//! (`header`), its buffers have to be large enough for one; a frame that no set of its buffers
//! can hold is dropped, so that it does not block those behind it (CVE-2020-16843 was such a
//! freeze). Work in one call is bounded in both directions, and over time by the limits that the
//! machine's description has; a direction that waits for one holds its frame, or its chains, back. The
//! number of pairs that the driver asks for is at most the card's own.

mod config;
mod control;
mod header;
mod multi_queue;
mod pair;
mod threaded_pair;
mod vhost;

use std::io;
use std::os::fd::BorrowedFd;

use vmm_control::MAX_PAIRS;
use vmm_sys_util::eventfd::EventFd;

use self::config::Config;
pub use self::config::{NetError, PlugError};
use self::multi_queue::MultiQueue;
pub use self::pair::Limits;
use self::pair::Pair;
pub use self::vhost::VhostNet;
use crate::backend::tap::Tap;
use crate::jail::Filters;
use crate::report;
use crate::virtio::device::{Device, DeviceError, DeviceId, Traffic};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queues;

/// virtio 1.3 §5.1.2: `receiveq1` and `transmitq1`; each further pair has the same.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// `controlq`, of whose commands Linux sends one at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// The network card.
#[derive(Debug)]
pub struct Net<T> {
    config: Config,
    queue_sizes: Vec<u16>,
    features: u64,
    first: Pair<T>,
    /// Unless that is all.
    multi: Option<MultiQueue<T>>,
}

impl<T: Tap> Net<T> {
    /// A card with the given hardware address, and the MTU if the driver is to be told one, with so many
    /// pairs of queues, but 1 to [`MAX_PAIRS`]; the first as fast as `limits` allow, both ways.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(
        mac: [u8; 6],
        mtu: Option<u16>,
        pairs: u8,
        limits: Limits,
    ) -> Result<Self, NetError> {
        let pairs = pairs.clamp(1, MAX_PAIRS);
        let first = Pair::new(limits).map_err(|e| NetError::Host(e.into()))?;
        let mut queue_sizes = QUEUE_SIZES.repeat(pairs.into());
        let mut multi = None;
        if pairs > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
            let several = MultiQueue::new().map_err(NetError::Host)?;
            (several.events())
                .try_for_each(|event| first.watch(event))
                .map_err(|e| NetError::Host(e.into()))?;
            multi = Some(several);
        }
        Ok(Self {
            config: Config::new(mac, mtu, pairs)?,
            queue_sizes,
            features: 0,
            first,
            multi,
        })
    }

    /// Connects the card to a tap, in place of the one it may have had: a descriptor for each pair of
    /// queues, all of them attached. Those of pairs that the driver does not use are detached.
    ///
    /// # Errors
    /// See [`PlugError`].
    pub fn plug(&mut self, taps: Vec<T>) -> Result<(), PlugError> {
        let (pairs, queues) = (self.queue_sizes.len() / 2, taps.len());
        let mut taps = taps.into_iter();
        let Some(mut first) = taps.next().filter(|_| queues == pairs) else {
            return Err(PlugError::Queues { pairs, queues });
        };
        (first.set_offloads(header::offloads(self.features))).map_err(PlugError::Offloads)?;
        self.first.plug(first);
        match &self.multi {
            Some(multi) => multi.plug(taps).map_err(PlugError::Detach),
            None => Ok(()),
        }
    }
}

impl<T: Tap + 'static> Net<T> {
    /// Starts the threads of the further pairs, once the card has its place, confined by `filters`.
    ///
    /// # Errors
    /// When the host has no thread or descriptor to spare, or a thread cannot be confined.
    pub fn start_threads(&mut self, filters: Filters) -> io::Result<()> {
        match &mut self.multi {
            Some(multi) => multi.start(filters),
            None => Ok(()),
        }
    }
}

impl<T: Tap> Device for Net<T> {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.features = features;
        // Of the whole tap, whichever queue of it is told. One that cannot be told is gone: that is a cable
        // that was pulled, and another may come.
        if let Some(tap) = self.first.tap()
            && let Err(error) = tap.set_offloads(header::offloads(features))
        {
            warn_of_tap(&error);
            self.first.unplug();
            if let Some(multi) = &self.multi {
                multi.unplug();
            }
        }
        if let Some(multi) = &mut self.multi {
            multi.activate(features, queues);
        }
        Ok(self.first.activate(features, queues)?)
    }

    fn reset(&mut self) {
        self.halt();
        self.features = 0;
        self.first.reset();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        match &mut self.multi {
            Some(multi) if index >= QUEUE_SIZES.len() => multi.serve(index, queues),
            _ => Ok(self.first.serve(index, queues)?),
        }
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.first.backend())
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.first.serve_backend(queues)?;
        match &mut self.multi {
            Some(multi) => multi.serve_events(queues),
            None => Ok(()),
        }
    }

    fn wire(&mut self, kicks: &[EventFd], interrupt: &Interrupt) -> io::Result<()> {
        match &mut self.multi {
            Some(multi) => multi.wire(kicks, interrupt),
            None => Ok(()),
        }
    }

    fn has_thread(&self, queue: usize) -> bool {
        // But for the first pair, and the control queue behind all.
        (QUEUE_SIZES.len()..self.queue_sizes.len() / 2 * 2).contains(&queue)
    }

    fn traffic(&self) -> Traffic {
        let further = self.multi.as_ref().map(MultiQueue::traffic);
        [self.first.traffic()].into_iter().chain(further).sum()
    }

    fn halt(&mut self) {
        if let Some(multi) = &mut self.multi {
            multi.rest();
        }
    }
}

/// Says that a card goes on without the tap that it had.
fn warn_of_tap(error: &io::Error) {
    report::warn(format_args!(
        "a network card lets go of its tap: set its offloads: {error}"
    ));
}

#[cfg(test)]
mod tests;
