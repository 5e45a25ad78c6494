//! A pair that a thread of its own serves.
//!
//! ```text
//!              the driver is ready               its number of pairs includes this one
//!   resting ────────────────────────▶ serving ◀────────────────────────▶ serving, with
//!      ▲                                 │                                a queue of the tap
//!      └────────── reset, halt ──────────┴── a broken chain ──▶ failed ── the event loop hears of it
//! ```
//! The thread takes the pair's lock for a turn, as long as the event loop takes a card's: 256 frames each
//! way. Whoever changes something, the loop or the vCPU that resets the card, waits for one such turn and
//! not for more, however busy the thread is: whoever waits is next. The thread itself holds no other lock
//! meanwhile. A queue of the tap that the driver does not use is detached:
//! the kernel would go on to give it frames that nobody reads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::pair::{Limits, Pair, RX, TX};
use crate::backend::tap::Tap;
use crate::event_loop::EventLoop;
use crate::jail::{Filters, Thread};
use crate::memory::Ram;
use crate::report;
use crate::virtio::device::Traffic;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueError, Queues};

/// How a card's threads call the event loop.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    fn ring(&self) {
        // It fails only when it rings already, very often.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Whether it has rung since the last time.
    pub(super) fn answer(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the pair's thread and the card have in common.
#[derive(Debug)]
pub(super) struct ThreadedPair<T> {
    kicks: [EventFd; 2],
    interrupt: Interrupt,
    bell: Arc<Bell>,
    /// Held by whoever waits for the state. A mutex alone is not fair: a thread that lets go of it has it again
    /// before those who wait are awake.
    next: Mutex<()>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    pair: Pair<T>,
    work: Work,
    /// The queue of the tap, detached, as long as the driver does not use the pair.
    parked: Option<T>,
}

#[derive(Debug)]
enum Work {
    /// The driver is not ready, or has not agreed to several pairs.
    Resting,
    /// The rings are this pair's to serve.
    Serving { ram: Ram, rings: Vec<Queue> },
    /// The driver broke them.
    Failed(QueueError),
}

/// What a descriptor's readiness means to the thread.
#[derive(Debug, Clone, Copy)]
enum Token {
    /// The card is gone.
    Over,
    /// The driver notified a queue.
    Kick(usize),
    /// The tap is ready.
    Tap,
}

impl<T: Tap> ThreadedPair<T> {
    /// A pair without a tap, whose queues have these notifications.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub(super) fn new(
        kicks: &[EventFd; 2],
        interrupt: &Interrupt,
        bell: &Arc<Bell>,
    ) -> io::Result<Self> {
        let [receive, transmit] = kicks;
        Ok(Self {
            kicks: [receive.try_clone()?, transmit.try_clone()?],
            interrupt: Interrupt::new(interrupt.line().try_clone()?),
            bell: Arc::clone(bell),
            next: Mutex::default(),
            state: Mutex::new(State {
                pair: Pair::new(Limits::default())?,
                work: Work::Resting,
                parked: None,
            }),
        })
    }

    /// The driver is ready: `rings` are nobody else's to serve until [`ThreadedPair::rest`]. Notifications
    /// that came before are the caller's to repeat.
    pub(super) fn begin(&self, features: u64, ram: &Ram, rings: Vec<Queue>) {
        let mut state = self.lock();
        state.pair.set_features(features);
        state.work = Work::Serving {
            ram: ram.clone(),
            rings,
        };
    }

    /// Gives rings and frames up: once this returns nobody touches them.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        state.work = Work::Resting;
        state.park();
        state.pair.reset();
    }

    /// Has the kernel give the pair frames, if there is a tap.
    ///
    /// # Errors
    /// When it does not take the queue back; the tap may be gone.
    pub(super) fn attach(&self) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(tap) = &mut state.parked {
            tap.set_attached(true)?;
        }
        if let Some(tap) = state.parked.take() {
            state.pair.plug(tap);
        }
        drop(state);
        // Frames may have come before the tap was listened to, and chains while there was none.
        self.serve_backend();
        Ok(())
    }

    /// Sends what the driver has made available so far, as far as the tap takes it, and has the kernel
    /// give the pair no more frames. What the driver sends from now on is lost.
    pub(super) fn detach(&self) {
        if !self.lock().pair.has_tap() {
            return;
        }
        self.with_queues(|pair, queues| pair.serve(TX, queues));
        self.lock().park();
        // A chain that has waited for the tap is lost, and not stuck.
        self.with_queues(|pair, queues| pair.serve(TX, queues));
    }

    /// Connects the pair to a tap's queue, which is attached, in place of the one it may have had.
    ///
    /// # Errors
    /// When it is not `used`, and cannot be detached.
    pub(super) fn plug(&self, mut tap: T, used: bool) -> io::Result<()> {
        if used {
            self.lock().pair.plug(tap);
            self.serve_backend();
        } else {
            tap.set_attached(false)?;
            self.lock().parked = Some(tap);
        }
        Ok(())
    }

    /// Takes its queue of the tap away, used or not.
    pub(super) fn unplug(&self) {
        let mut state = self.lock();
        state.pair.unplug();
        state.parked = None;
    }

    /// The driver notified queue `index` of the pair. What is notified and is none of the pair's may
    /// be the event loop's: it is called.
    pub(super) fn serve(&self, index: usize) {
        let mut state = self.lock();
        if matches!(state.work, Work::Resting) {
            self.bell.ring();
        }
        self.work(&mut state, |pair, queues| pair.serve(index, queues));
    }

    /// The tap is ready.
    pub(super) fn serve_backend(&self) {
        self.with_queues(Pair::serve_backend);
    }

    /// What has passed through the pair.
    pub(super) fn traffic(&self) -> Traffic {
        self.lock().pair.traffic()
    }

    /// What the driver did to the rings, told once.
    pub(super) fn take_failure(&self) -> Option<QueueError> {
        let mut state = self.lock();
        match std::mem::replace(&mut state.work, Work::Resting) {
            Work::Failed(why) => Some(why),
            work => {
                state.work = work;
                None
            }
        }
    }

    fn with_queues(
        &self,
        work: impl FnOnce(&mut Pair<T>, &mut Queues<'_>) -> Result<(), QueueError>,
    ) {
        self.work(&mut self.lock(), work);
    }

    fn work(
        &self,
        state: &mut State<T>,
        work: impl FnOnce(&mut Pair<T>, &mut Queues<'_>) -> Result<(), QueueError>,
    ) {
        let State {
            pair,
            work: Work::Serving { ram, rings },
            ..
        } = state
        else {
            return;
        };
        let mut queues = Queues::new(ram, rings, &self.kicks, &self.interrupt);
        if let Err(error) = work(pair, &mut queues) {
            pair.hush();
            state.work = Work::Failed(error);
            self.bell.ring();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Tap> State<T> {
    fn park(&mut self) {
        if let Some(mut tap) = self.pair.unplug() {
            // It fails only for a tap that is gone, of which nothing comes any more.
            let _ = tap.set_attached(false);
            self.parked = Some(tap);
        }
    }
}

impl<T: Tap + 'static> ThreadedPair<T> {
    /// Starts its thread, called `name`, confined by `filters`; it ends with what is returned.
    ///
    /// # Errors
    /// When the host has no thread or descriptor to spare, or the thread cannot be confined.
    pub(super) fn start(self: &Arc<Self>, name: String, filters: Filters) -> io::Result<Handle> {
        let over = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let handle = Handle(over.try_clone()?);
        let mut events = EventLoop::new()?;
        events.add(over.as_raw_fd(), Token::Over)?;
        for (index, kick) in [RX, TX].into_iter().zip(&self.kicks) {
            events.add(kick.as_raw_fd(), Token::Kick(index))?;
        }
        events.add(self.lock().pair.backend().as_raw_fd(), Token::Tap)?;
        let this = Arc::clone(self);
        filters.start(Thread::Card, name, move || {
            this.run(events);
            drop(over);
        })?;
        Ok(handle)
    }

    fn run(&self, mut events: EventLoop<Token>) {
        loop {
            let ready = match events.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    return report::warn(format_args!("wait for a network card: {error}"));
                }
            };
            for token in ready {
                match token {
                    Token::Over => return,
                    Token::Kick(index) => {
                        let kick = self.kicks.get(index).map(EventFd::read);
                        debug_assert!(kick.is_some(), "a pair has two queues");
                        self.serve(index);
                    }
                    Token::Tap => self.serve_backend(),
                }
            }
        }
    }
}

/// Ends a pair's thread when it is dropped.
#[derive(Debug)]
pub(super) struct Handle(EventFd);

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::backend::tap::TapFile;
    use crate::virtio::queue::testing::Driver;

    #[test]
    fn whoever_wants_a_busy_pair_is_next() {
        let mut driver = Driver::new(&[16, 16]);
        let queues = driver.queues();
        let kicks = queues.kicks().try_into().unwrap();
        let bell = Arc::new(Bell::new().unwrap());
        let pair = ThreadedPair::<TapFile>::new(kicks, queues.interrupt(), &bell).unwrap();
        pair.begin(0, queues.ram(), Vec::new());
        let (turns, over) = (AtomicU32::new(0), AtomicBool::new(false));

        let mut waited = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    pair.with_queues(|_, _| {
                        turns.fetch_add(1, SeqCst);
                        thread::sleep(Duration::from_millis(2));
                        Ok(())
                    });
                }
            });
            let wait = |_| {
                let before = turns.load(SeqCst);
                while turns.load(SeqCst) == before {
                    thread::yield_now();
                }
                let before = turns.load(SeqCst);
                let _ = pair.traffic();
                turns.load(SeqCst) - before
            };
            let waited: Vec<u32> = (0..25).map(wait).collect();
            over.store(true, SeqCst);
            waited
        });

        // Between looking and asking this thread may lose its processor, now and then.
        waited.sort_unstable();
        assert!(waited[12] <= 1, "turns that were waited for: {waited:?}");
    }
}
