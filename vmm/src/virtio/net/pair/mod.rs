//! A pair of queues, and what of the tap is behind it (virtio 1.3 §5.1.6): frames of either direction.
//!
//! A frame passes through one buffer here, in either direction: it is looked at where the guest cannot
//! change it any more.
//!
//! ```text
//!  receive: tap ──▶ inbox ──▶ as many of the driver's buffers as it takes
//!                     └─ too few: the frame stays, the tap rests until the driver adds some
//!  transmit: chain ──▶ outbox ──▶ header checked ──▶ tap
//!                                                     └─ full: the chain stays until it is not
//! ```

mod receive;
mod transmit;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventFlags};

use self::receive::{Inbox, Receive};
use self::transmit::Transmit;
use crate::backend::tap::{Tap, VNET_HEADER_LEN};
use crate::rate_limit::RateLimiter;
use crate::virtio::device::Traffic;
use crate::virtio::queue::{QueueError, Queues};

#[cfg(test)]
pub(super) use self::receive::NUM_BUFFERS;

/// The two, by their places in the pair.
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// Frames in one call and direction.
const BUDGET: usize = 256;

/// Header, Ethernet header, and the 64 KiB that offloads make the largest packet (virtio 1.3
/// §5.1.6.3.1).
pub(super) const MAX_FRAME: usize = VNET_HEADER_LEN + 14 + 65536;

/// How much may pass over time.
#[derive(Debug, Default)]
pub struct Limits {
    /// Frames to the guest.
    pub receive: RateLimiter,
    /// Frames from the guest.
    pub transmit: RateLimiter,
}

/// One of a card's pairs.
#[derive(Debug)]
pub(super) struct Pair<T> {
    tap: Option<T>,
    features: u64,
    epoll: OwnedFd,
    watched: EventFlags,
    inbox: Inbox,
    outbox: Box<[u8]>,
    transmit: Transmit,
    limits: Limits,
    /// Frames that were dropped are its errors.
    traffic: Traffic,
}

impl<T: Tap> Pair<T> {
    /// One without a tap, both ways as fast as `limits` allow.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub(super) fn new(limits: Limits) -> rustix::io::Result<Self> {
        Ok(Self {
            tap: None,
            features: 0,
            epoll: new_epoll(&limits)?,
            watched: EventFlags::empty(),
            inbox: Inbox {
                buffer: vec![0; MAX_FRAME].into_boxed_slice(),
                state: Receive::Over,
            },
            outbox: vec![0; MAX_FRAME].into_boxed_slice(),
            transmit: Transmit::Ready,
            limits,
            traffic: Traffic::default(),
        })
    }

    /// The tap, if it has one.
    pub(super) fn tap(&mut self) -> Option<&mut T> {
        self.tap.as_mut()
    }

    /// Whether it has one.
    pub(super) fn has_tap(&self) -> bool {
        self.tap.is_some()
    }

    /// Connects it to a tap, in place of the one it may have had. A frame that was read from that is still
    /// the driver's.
    pub(super) fn plug(&mut self, tap: T) {
        self.take_tap();
        self.tap = Some(tap);
        if self.inbox.state == Receive::Over {
            self.inbox.state = Receive::Empty;
        }
        self.rewatch();
    }

    /// Takes the tap away, and what was read from it.
    pub(super) fn unplug(&mut self) -> Option<T> {
        self.inbox.state = Receive::Over;
        self.take_tap()
    }

    fn take_tap(&mut self) -> Option<T> {
        let old = self.tap.take()?;
        if !self.watched.is_empty() {
            // It fails only for a descriptor that is not there.
            let _ = epoll::delete(&self.epoll, &old);
        }
        self.watched = EventFlags::empty();
        Some(old)
    }

    /// Hears nothing more of the tap until it is plugged again.
    pub(super) fn hush(&mut self) {
        self.inbox.state = Receive::Over;
        self.transmit = Transmit::Ready;
        self.rewatch();
    }

    /// What the driver accepted.
    pub(super) fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    /// The driver is ready, and accepted `features`.
    pub(super) fn activate(
        &mut self,
        features: u64,
        queues: &mut Queues<'_>,
    ) -> Result<(), QueueError> {
        self.set_features(features);
        self.receive(queues)?;
        self.transmit(queues)
    }

    /// Forgets every frame and what was negotiated.
    pub(super) fn reset(&mut self) {
        self.features = 0;
        self.transmit = Transmit::Ready;
        if self.inbox.state != Receive::Over {
            self.inbox.state = Receive::Empty;
        }
        self.rewatch();
    }

    /// The driver made buffers available in queue `index`, [`RX`] or [`TX`].
    pub(super) fn serve(
        &mut self,
        index: usize,
        queues: &mut Queues<'_>,
    ) -> Result<(), QueueError> {
        match index {
            RX => self.receive(queues),
            TX => self.transmit(queues),
            _ => Ok(()),
        }
    }

    /// What has passed through it.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Whether a chain waits for the tap.
    pub(super) fn is_blocked(&self) -> bool {
        self.transmit == Transmit::Blocked
    }

    /// Hears `event` too, from now on.
    pub(super) fn watch(&self, event: impl AsFd) -> rustix::io::Result<()> {
        epoll::add(
            &self.epoll,
            event,
            epoll::EventData::new_u64(0),
            EventFlags::IN,
        )
    }

    /// Readable while there is work for [`Pair::serve_backend`].
    pub(super) fn backend(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The tap is ready, or a limit's wait is over.
    pub(super) fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.receive(queues)?;
        if self.is_blocked() || self.limits.transmit.is_waiting() {
            self.transmit(queues)?;
        }
        Ok(())
    }

    /// Brings epoll up to date: the tap is an event only for what can be done about it.
    fn rewatch(&mut self) {
        let Some(tap) = &self.tap else {
            return;
        };
        let mut wanted = match self.inbox.state {
            Receive::Empty if !self.limits.receive.is_waiting() => EventFlags::IN,
            Receive::Empty | Receive::Holding(_) | Receive::Over => EventFlags::empty(),
        };
        if self.is_blocked() {
            wanted |= EventFlags::OUT;
        }
        if wanted == self.watched {
            return;
        }
        let data = epoll::EventData::new_u64(0);
        // A tap that is gone reports its error even to those who ask for nothing.
        let changed = match (self.watched.is_empty(), wanted.is_empty()) {
            (_, true) => epoll::delete(&self.epoll, tap),
            (true, false) => epoll::add(&self.epoll, tap, data, wanted),
            (false, false) => epoll::modify(&self.epoll, tap, data, wanted),
        };
        // `add` fails without memory for a watch, and is tried again with the next notification.
        if changed.is_ok() {
            self.watched = wanted;
        }
    }
}

/// An epoll instance that hears when a limit's wait is over.
fn new_epoll(limits: &Limits) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for limit in [&limits.receive, &limits.transmit] {
        if let Some(timer) = limit.timer() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, timer, data, EventFlags::IN)?;
        }
    }
    Ok(epoll)
}
