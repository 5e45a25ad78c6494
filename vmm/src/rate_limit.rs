//! Token buckets: how much a device may do over time, in bytes and in operations.
//!
//! ```text
//!           spend: the level falls, below zero if it must
//!  ready ────────────────────────────────────────────────▶ waiting, the timer runs
//!    ▲                                                        │
//!    └───────────────── time has paid the debt ───────────────┘
//! ```
//! What an operation costs is known once it was looked at, so it is paid for afterwards: one that is
//! larger than a whole bucket needs no rule of its own, nothing is ever put back into a queue, and
//! over time the rate holds all the same. While a device waits it takes nothing from its queue and
//! does not listen to it, so a guest over its limit costs the loop one timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vmm_control::{RateLimit, TokenBucket};

/// Levels are in billionths of a token, so that no nanosecond's part of one is lost.
const TOKEN: i128 = 1_000_000_000;

/// Longer than any machine lives.
const LONGEST: Timespec = Timespec {
    tv_sec: 1 << 40,
    tv_nsec: 0,
};

/// What one device, or one direction of it, may do. The default is everything.
#[derive(Debug, Default)]
pub struct RateLimiter(Option<Limited>);

#[derive(Debug)]
struct Limited {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    timer: OwnedFd,
    waiting: bool,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    ///
    /// # Errors
    /// As `timerfd_create(2)`.
    pub fn new(limit: RateLimit) -> io::Result<Self> {
        if limit == RateLimit::default() {
            return Ok(Self::default());
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let now = Instant::now();
        Ok(Self(Some(Limited {
            bytes: limit.bytes.map(|bucket| Bucket::full(bucket, now)),
            operations: limit.operations.map(|bucket| Bucket::full(bucket, now)),
            timer,
            waiting: false,
        })))
    }

    /// Whether the next operation may begin. If not, [`RateLimiter::timer`] tells when to ask again.
    pub fn ready(&mut self) -> bool {
        match &mut self.0 {
            Some(limited) => limited.ready(Instant::now()),
            None => true,
        }
    }

    /// Whether the last answer of [`RateLimiter::ready`] was no.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.0.as_ref().is_some_and(|limited| limited.waiting)
    }

    /// Pays for one operation of so many bytes.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(limited) = &mut self.0 {
            for (bucket, tokens) in [(&mut limited.bytes, bytes), (&mut limited.operations, 1)] {
                if let Some(bucket) = bucket {
                    bucket.spend(tokens);
                }
            }
        }
    }

    /// Readable when the wait is over, until [`RateLimiter::ready`] is called. None without a limit.
    #[must_use]
    pub fn timer(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|limited| limited.timer.as_fd())
    }
}

impl Limited {
    fn ready(&mut self, now: Instant) -> bool {
        let mut debt = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.operations]
            .into_iter()
            .flatten()
        {
            bucket.fill(now);
            debt = debt.max(bucket.debt());
        }
        if self.waiting || !debt.is_zero() {
            // It is not readable any more once it was set; set to zero, it stays so.
            let time = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec::try_from(debt).unwrap_or(LONGEST),
            };
            let set = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time);
            // One that cannot be set would keep the device still forever.
            self.waiting = !debt.is_zero() && set.is_ok();
        }
        !self.waiting
    }
}

/// A bucket of tokens.
#[derive(Debug)]
struct Bucket {
    per_second: i128,
    burst: i128,
    /// Below zero, it is in debt.
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn full(bucket: TokenBucket, now: Instant) -> Self {
        let burst = i128::from(bucket.burst) * TOKEN;
        Self {
            per_second: bucket.per_second.get().into(),
            burst,
            level: burst,
            filled: now,
        }
    }

    /// Adds what has come since the last time. A token a second is a billionth a nanosecond.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let gained = i128::try_from(elapsed)
            .unwrap_or(i128::MAX)
            .saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.burst);
        self.filled = self.filled.max(now);
    }

    fn spend(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * TOKEN);
    }

    /// How long until there is none.
    fn debt(&self) -> Duration {
        let owed = u128::try_from(-self.level).unwrap_or(0);
        let nanoseconds = owed.div_ceil(self.per_second.unsigned_abs());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn bucket(per_second: u64, burst: u64) -> TokenBucket {
        TokenBucket {
            per_second: NonZeroU64::new(per_second).unwrap(),
            burst,
        }
    }

    fn fires(limiter: &RateLimiter, patience: Duration) -> bool {
        let timer = limiter.timer().unwrap();
        let mut fds = [PollFd::new(&timer, PollFlags::IN)];
        poll(&mut fds, Some(&patience.try_into().unwrap())).unwrap() > 0
    }

    #[test]
    fn a_burst_passes_at_once_and_what_follows_waits_for_the_timer() {
        let limit = RateLimit {
            bytes: Some(bucket(100_000, 3000)),
            operations: None,
        };
        let mut limiter = RateLimiter::new(limit).unwrap();
        let mut passed = 0;
        while limiter.ready() {
            limiter.spend(1000);
            passed += 1;
        }
        // Three of the burst, one on credit, and perhaps what came meanwhile.
        assert!((4..10).contains(&passed), "{passed}");
        assert!(limiter.is_waiting() && !fires(&limiter, Duration::ZERO));
        assert!(fires(&limiter, Duration::from_secs(10)));
        assert!(limiter.ready() && !limiter.is_waiting());
        assert!(!fires(&limiter, Duration::ZERO), "it was heard");
    }

    #[test]
    fn the_bucket_that_owes_more_decides() {
        let limit = RateLimit {
            bytes: Some(bucket(u64::MAX, u64::MAX)),
            operations: Some(bucket(1, 1)),
        };
        let mut limiter = RateLimiter::new(limit).unwrap();
        for _ in 0..2 {
            assert!(limiter.ready());
            limiter.spend(u64::MAX);
        }
        assert!(!limiter.ready());
    }

    #[test]
    fn without_a_limit_there_is_neither_timer_nor_wait() {
        let mut limiter = RateLimiter::new(RateLimit::default()).unwrap();
        for _ in 0..1000 {
            assert!(limiter.ready());
            limiter.spend(u64::MAX);
        }
        assert!(limiter.timer().is_none() && !limiter.is_waiting());
    }

    #[test]
    fn a_pause_earns_a_burst_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::full(bucket(1000, 5), start);
        bucket.fill(start + Duration::from_secs(3600));
        bucket.spend(5);
        assert!(bucket.debt().is_zero());
        bucket.spend(1);
        assert_eq!(bucket.debt(), Duration::from_millis(1));
    }

    #[test]
    fn a_part_of_a_nanosecond_is_waited_for_as_a_whole_one() {
        let mut bucket = Bucket::full(bucket(3, 0), Instant::now());
        bucket.spend(1);
        assert_eq!(bucket.debt(), Duration::from_nanos(333_333_334));
    }

    #[test]
    fn the_largest_debt_at_the_lowest_rate_is_a_very_long_wait() {
        let now = Instant::now();
        let mut bucket = Bucket::full(bucket(1, 0), now);
        bucket.spend(u64::MAX);
        bucket.spend(u64::MAX);
        bucket.fill(now + Duration::from_secs(1 << 32));
        assert_eq!(bucket.debt(), Duration::from_nanos(u64::MAX));
    }

    proptest! {
        /// No more passes than the burst, what the time brings, and one operation; and who waits as
        /// long as he is told waits not a nanosecond too long.
        #[test]
        fn what_passes_is_the_burst_and_the_rate(
            per_second in prop_oneof![1..1000_u64, 1..u64::from(u32::MAX)],
            burst in prop_oneof![Just(0), 0..1_000_000_u64],
            steps in vec((0..2_000_000_000_u64, 1..1_000_000_u64), 1..100),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::full(bucket(per_second, burst), start);
            let (mut elapsed, mut passed, mut last) = (Duration::ZERO, 0_u128, 0);
            for (pause, cost) in steps {
                elapsed += Duration::from_nanos(pause);
                bucket.fill(start + elapsed);
                let ready = bucket.debt().is_zero();
                let brought = elapsed.as_nanos() * u128::from(per_second);
                let allowed = brought + u128::from(burst) * 1_000_000_000;
                if ready {
                    bucket.spend(cost);
                    (passed, last) = (passed + u128::from(cost), u128::from(cost));
                } else {
                    // It is ready exactly when it said, and not a nanosecond earlier.
                    let debt = bucket.debt();
                    bucket.fill(start + elapsed + debt.saturating_sub(Duration::from_nanos(1)));
                    prop_assert!(!bucket.debt().is_zero());
                    bucket.fill(start + elapsed + debt);
                    prop_assert!(bucket.debt().is_zero());
                    elapsed += debt;
                }
                prop_assert!((passed - last) * 1_000_000_000 <= allowed);
            }
        }
    }
}
