//! What the machine is about, and what each thing that happens makes of it. Pure but for the clock.
//!
//! ```text
//!            over soft, and needs more: ask              as much as was asked for is there
//! Settled ───────────────────────────────────▶ Growing ─────────────────────────────────▶ Settled
//! (soft)  ◀── memory came or went ── Spent ◀──  (hard)
//!                                   (no bound)      there is no more, or it does not come
//! ```
//! Where there is no more, nothing makes the containers wait: the kernel kills, as on any host that is
//! full.

use std::time::Duration;

use tokio::time::Instant;

use super::policy::{BLOCK, Look};

/// How long memory that was asked for may take, after the last of it came.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Settled,
    Growing {
        /// Bytes that should be plugged.
        to: u64,
        /// When it is given up.
        until: Instant,
    },
    Spent,
}

/// A machine that grows.
#[derive(Debug)]
pub(super) struct Growth {
    state: State,
    /// What the machine had before anything was plugged.
    boot: u64,
    /// The last look that a decision was made on.
    last: Look,
}

/// How much memory to ask for: bytes that are plugged then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask(pub(super) u64);

impl Growth {
    /// A machine of which nothing was plugged yet.
    pub(super) fn new(now: Look) -> Self {
        Self {
            state: State::Settled,
            boot: now.total,
            last: now,
        }
    }

    /// The containers are over their bound.
    pub(super) fn over(&mut self, now: Look) -> Option<Ask> {
        match self.state {
            State::Settled => self.ask_if_needed(now),
            State::Growing { .. } | State::Spent => None,
        }
    }

    /// Memory has come, or gone.
    pub(super) fn changed(&mut self, now: Look) -> Option<Ask> {
        match self.state {
            State::Growing { to, .. } if self.plugged(now) < to => {
                self.grow(to);
                None
            }
            State::Settled | State::Growing { .. } | State::Spent => {
                self.state = State::Settled;
                self.ask_if_needed(now)
            }
        }
    }

    /// The shim says how much may be plugged, and will be.
    pub(super) fn granted(&mut self, now: Look, granted: u64) {
        let comes = granted > self.plugged(now);
        match self.state {
            State::Growing { to, .. } if comes => self.grow(to.min(granted)),
            State::Growing { .. } => self.state = State::Spent,
            State::Spent if comes => self.grow(granted),
            State::Settled | State::Spent => {}
        }
    }

    /// What was asked for has not come.
    pub(super) fn give_up(&mut self) {
        self.state = State::Spent;
    }

    /// When to give up, if something was asked for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Growing { until, .. } => Some(until),
            State::Settled | State::Spent => None,
        }
    }

    /// Where the containers are to be stopped, in bytes.
    pub(super) fn bound(&self, now: Look) -> Option<u64> {
        match self.state {
            State::Settled => Some(now.bound(false)),
            State::Growing { .. } => Some(now.bound(true)),
            State::Spent => None,
        }
    }

    fn ask_if_needed(&mut self, now: Look) -> Option<Ask> {
        let needed = now.needs_more(self.last);
        self.last = now;
        if !needed {
            return None;
        }
        let to = self.plugged(now) + now.step();
        self.grow(to);
        Some(Ask(to))
    }

    fn grow(&mut self, to: u64) {
        let until = Instant::now() + PATIENCE;
        self.state = State::Growing { to, until };
    }

    /// Bytes that were plugged since the start: whole memory blocks, give or take a few pages.
    fn plugged(&self, now: Look) -> u64 {
        (now.total.saturating_sub(self.boot) + BLOCK / 2) / BLOCK * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn look(total: u64, used: u64) -> Look {
        Look {
            total: total * MIB,
            used: used * MIB,
            ..Look::default()
        }
    }

    /// A machine of 500 MiB whose containers have asked for the first 256 more.
    fn growing() -> Growth {
        let mut growth = Growth::new(look(500, 10));
        assert_eq!(growth.over(look(500, 400)), Some(Ask(256 * MIB)));
        growth
    }

    #[test]
    fn what_is_asked_for_is_asked_for_once_and_settles_when_it_is_there() {
        let mut growth = growing();
        assert_eq!(growth.over(look(500, 400)), None);
        assert_eq!(growth.bound(look(500, 400)), Some(look(500, 0).hard()));
        growth.granted(look(500, 400), 256 * MIB);
        assert_eq!(growth.changed(look(628, 400)), None);
        assert!(growth.deadline().is_some(), "half of it is there");
        assert_eq!(growth.changed(look(756, 400)), None);
        assert_eq!(growth.deadline(), None);
        assert_eq!(growth.bound(look(756, 400)), Some(look(756, 0).soft()));
    }

    #[test]
    fn a_few_pages_make_no_block() {
        let mut growth = growing();
        let mut almost = look(756, 400);
        almost.total -= 4096;
        growth.changed(almost);
        assert_eq!(growth.deadline(), None);
    }

    #[test]
    fn containers_that_were_faster_ask_again_at_once() {
        let mut growth = growing();
        let step = look(756, 0).step();
        assert_eq!(growth.changed(look(756, 650)), Some(Ask(256 * MIB + step)));
    }

    #[test]
    fn where_there_is_no_more_nobody_waits_until_there_is() {
        let mut growth = growing();
        growth.granted(look(500, 400), 0);
        assert_eq!(growth.bound(look(500, 400)), None);
        assert_eq!(
            (growth.over(look(500, 450)), growth.deadline()),
            (None, None)
        );
        // A limit was raised.
        growth.granted(look(500, 450), 128 * MIB);
        assert!(growth.deadline().is_some());
        growth.changed(look(628, 300));
        assert_eq!(growth.bound(look(628, 300)), Some(look(628, 0).soft()));
    }

    #[test]
    fn less_than_was_asked_for_is_enough_when_it_is_all_there_is() {
        let mut growth = growing();
        growth.granted(look(500, 400), 128 * MIB);
        assert_eq!(growth.changed(look(628, 300)), None);
        assert_eq!(growth.deadline(), None);
    }

    #[test]
    fn memory_that_does_not_come_is_given_up() {
        let mut growth = growing();
        growth.give_up();
        assert_eq!(growth.bound(look(500, 400)), None);
    }

    #[test]
    fn memory_that_comes_unasked_moves_the_bound() {
        let mut growth = Growth::new(look(500, 10));
        growth.granted(look(500, 10), 1024 * MIB);
        assert_eq!(growth.deadline(), None);
        assert_eq!(growth.changed(look(628, 10)), None);
        assert_eq!(growth.bound(look(628, 10)), Some(look(628, 0).soft()));
    }
}
