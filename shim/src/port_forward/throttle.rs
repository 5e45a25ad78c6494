//! How often the log hears of what others can cause as often as they like.

use std::time::{Duration, Instant};

/// Lets one message pass in a while.
#[derive(Debug)]
pub(super) struct Throttle {
    pause: Duration,
    told: Option<Instant>,
}

impl Throttle {
    /// One that lets a message pass, and after it none for `pause`.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, told: None }
    }

    /// Whether a message may be told now; it counts as told then.
    pub(super) fn passes(&mut self) -> bool {
        self.passes_at(Instant::now())
    }

    fn passes_at(&mut self, now: Instant) -> bool {
        let passes = self.told.is_none_or(|told| now - told >= self.pause);
        if passes {
            self.told = Some(now);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_message_in_a_while() {
        let (mut throttle, start) = (Throttle::new(Duration::from_secs(10)), Instant::now());
        let told_in = |throttle: &mut Throttle, seconds: std::ops::Range<u64>| {
            let moments = seconds.flat_map(|second| [second; 100]);
            let at = moments.map(|second| start + Duration::from_secs(second));
            at.filter(|&at| throttle.passes_at(at)).count()
        };
        assert_eq!(told_in(&mut throttle, 0..10), 1);
        assert_eq!(told_in(&mut throttle, 10..35), 3);
    }
}
