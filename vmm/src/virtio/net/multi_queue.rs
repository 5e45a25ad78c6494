//! What a card of several pairs of queues has besides the first: the further pairs, a thread for each, and
//! the control queue, by which the driver says how many of them it uses (virtio 1.3 §5.1.6.5.6).
//!
//! Threat: a driver that changes the number without end. To attach or detach a queue of the tap takes the
//! host's lock of all its interfaces, so commands are limited over time, and over resets.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use virtio_queue::Queue;
use vmm_control::{RateLimit, TokenBucket};
use vmm_sys_util::eventfd::EventFd;

use super::control;
use super::threaded_pair::{Bell, Handle, ThreadedPair};
use crate::backend::tap::Tap;
use crate::jail::Filters;
use crate::rate_limit::RateLimiter;
use crate::report;
use crate::virtio::device::{DeviceError, Traffic};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueError, Queues};

/// Commands in a second, after as many at once. A driver's start takes one.
const COMMANDS: NonZeroU64 = NonZeroU64::new(16).expect("it is not zero");

/// See the module.
#[derive(Debug)]
pub(super) struct MultiQueue<T> {
    further: Vec<Arc<ThreadedPair<T>>>,
    threads: Vec<Handle>,
    bell: Arc<Bell>,
    limit: RateLimiter,
    agreed: Agreed,
    /// How many pairs the driver uses, the first included.
    used: usize,
}

/// What the driver accepted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreed {
    /// No control queue.
    Nothing,
    /// `VIRTIO_NET_F_CTRL_VQ` alone: a control queue of which no command is for it.
    Commands,
    /// `VIRTIO_NET_F_MQ` too.
    Pairs,
}

impl Agreed {
    fn on(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        match (has(VIRTIO_NET_F_CTRL_VQ), has(VIRTIO_NET_F_MQ)) {
            // §5.1.3.1: VIRTIO_NET_F_MQ requires VIRTIO_NET_F_CTRL_VQ.
            (false, _) => Self::Nothing,
            (true, false) => Self::Commands,
            (true, true) => Self::Pairs,
        }
    }
}

impl<T: Tap> MultiQueue<T> {
    /// What such a card has before the transport is there.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        let commands = TokenBucket {
            per_second: COMMANDS,
            burst: COMMANDS.get(),
        };
        Ok(Self {
            further: Vec::new(),
            threads: Vec::new(),
            bell: Arc::new(Bell::new()?),
            limit: RateLimiter::new(RateLimit {
                bytes: None,
                operations: Some(commands),
            })?,
            agreed: Agreed::Nothing,
            used: 1,
        })
    }

    /// What the event loop hears besides the first pair.
    pub(super) fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(self.bell.as_fd()), self.limit.timer()]
            .into_iter()
            .flatten()
    }

    /// Makes the further pairs, whose queues have these notifications.
    pub(super) fn wire(&mut self, kicks: &[EventFd], interrupt: &Interrupt) -> io::Result<()> {
        let (pairs, _control) = kicks.as_chunks();
        let further = pairs.iter().skip(1);
        let further =
            further.map(|kicks| ThreadedPair::new(kicks, interrupt, &self.bell).map(Arc::new));
        self.further = further.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The driver is ready.
    pub(super) fn activate(&mut self, features: u64, queues: &Queues<'_>) {
        self.agreed = Agreed::on(features);
        if self.agreed == Agreed::Pairs {
            for (number, pair) in (1..).zip(&self.further) {
                let rings: Vec<Queue> = queues.rings_of(2 * number..2 * number + 2);
                pair.begin(features, queues.ram(), rings);
            }
        }
    }

    /// Takes everything back from the threads: the driver uses one pair, if any.
    pub(super) fn rest(&mut self) {
        for pair in &self.further {
            pair.rest();
        }
        self.agreed = Agreed::Nothing;
        self.used = 1;
        self.bell.answer();
    }

    /// Connects the further pairs to a tap's further queues, one for each.
    ///
    /// # Errors
    /// When one that is not used cannot be detached.
    pub(super) fn plug(&self, taps: impl Iterator<Item = T>) -> io::Result<()> {
        ((1..).zip(&self.further).zip(taps))
            .try_for_each(|((number, pair), tap)| pair.plug(tap, number < self.used))
    }

    /// Takes the tap's further queues away.
    pub(super) fn unplug(&self) {
        for pair in &self.further {
            pair.unplug();
        }
    }

    /// The driver notified queue `index`, which is none of the first pair's.
    pub(super) fn serve(
        &mut self,
        index: usize,
        queues: &mut Queues<'_>,
    ) -> Result<(), DeviceError> {
        if Some(index) == self.control() {
            return Ok(self.serve_control(queues)?);
        }
        // As its thread would, were it told.
        if let Some(pair) = (index / 2).checked_sub(1).and_then(|i| self.further.get(i)) {
            pair.serve(index % 2);
        }
        Ok(())
    }

    /// One of [`MultiQueue::events`] may be ready.
    pub(super) fn serve_events(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if self.bell.answer() {
            for (number, pair) in (2..).zip(&self.further) {
                if let Some(why) = pair.take_failure() {
                    let why = report::chain(&why);
                    return Err(DeviceError::Backend(format!("pair {number}: {why}")));
                }
            }
            // Its place may be that of a pair whose thread has heard of it.
            self.serve_control(queues)?;
        }
        if self.limit.is_waiting() && self.limit.ready() {
            self.serve_control(queues)?;
        }
        Ok(())
    }

    /// What has passed through the further pairs.
    pub(super) fn traffic(&self) -> Traffic {
        self.further.iter().map(|pair| pair.traffic()).sum()
    }

    /// Where the control queue is (§5.1.2): behind all pairs, or behind the one of a driver that knows no
    /// more.
    fn control(&self) -> Option<usize> {
        match self.agreed {
            Agreed::Nothing => None,
            Agreed::Commands => Some(2),
            Agreed::Pairs => Some(2 * (1 + self.further.len())),
        }
    }

    fn serve_control(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let Some(index) = self.control() else {
            return Ok(());
        };
        let Self {
            further,
            limit,
            agreed,
            used,
            ..
        } = self;
        let ram = queues.ram();
        queues.drain_within(limit, index, |chain| {
            control::answer(index, ram, &chain, |wanted| {
                *agreed == Agreed::Pairs && set_pairs(further, used, wanted.into())
            })
        })
    }
}

/// Has the driver use `wanted` pairs, in place of `used`; says whether it does. There is a largest number,
/// and it is the card's: the specification's is larger.
fn set_pairs<T: Tap>(further: &[Arc<ThreadedPair<T>>], used: &mut usize, wanted: usize) -> bool {
    if !(1..=1 + further.len()).contains(&wanted) {
        return false;
    }
    let (grow, shrink) = further.split_at(wanted - 1);
    if let Err(error) = grow.iter().try_for_each(|pair| pair.attach()) {
        report::warn(format_args!("use {wanted} queues of a tap: {error}"));
        for pair in further.get(*used - 1..).unwrap_or_default() {
            pair.detach();
        }
        return false;
    }
    for pair in shrink {
        pair.detach();
    }
    *used = wanted;
    true
}

impl<T: Tap + 'static> MultiQueue<T> {
    /// Starts a thread for each further pair, confined by `filters`.
    ///
    /// # Errors
    /// When the host has no thread or descriptor to spare, or a thread cannot be confined.
    pub(super) fn start(&mut self, filters: Filters) -> io::Result<()> {
        let further = (2..).zip(&self.further);
        let threads = further.map(|(number, pair)| pair.start(format!("card {number}"), filters));
        self.threads = threads.collect::<Result<_, _>>()?;
        Ok(())
    }
}
