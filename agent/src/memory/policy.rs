//! When a machine needs more memory, and how much. Pure.
//!
//! ```text
//! 0 ────────────────────── soft ─────────── hard ───────────── total
//!    containers                │  they ask     │  they wait       │ the kernel's, the agent's, and
//!                              │  for more     │  until it comes  │ what describes more memory
//! ```

/// What a look at the machine shows. In bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Memory of the machine (`MemTotal`).
    pub(super) total: u64,
    /// What the containers have of it (`memory.current`).
    pub(super) used: u64,
    /// Of that, what is only kept in case that somebody reads it again.
    pub(super) cache: u64,
    /// What was read again after it had been dropped, since the machine was booted.
    pub(super) refaulted: u64,
}

const MIB: u64 = 1 << 20;

/// What memory is asked for in multiples of: a memory block of Linux.
pub(super) const BLOCK: u64 = 128 * MIB;

/// Reading so much again, between two looks, is what more memory would have saved.
const THRASHING: u64 = 4 * MIB;

/// How much containers that are over both bounds may add until the next look.
const BEYOND: u64 = 16 * MIB;

impl Look {
    /// Where the containers have to wait until there is more: the rest is the kernel's own, and a
    /// 64th of what is plugged next describes it.
    pub(super) fn hard(self) -> u64 {
        self.total.saturating_sub(64 * MIB + self.total / 16)
    }

    /// Where more is asked for, so that it comes before anybody waits.
    pub(super) fn soft(self) -> u64 {
        let hard = self.hard();
        hard.saturating_sub((64 * MIB).max(hard / 8))
    }

    /// Whether more memory would do more than keep more files' contents in case of need.
    pub(super) fn needs_more(self, before: Self) -> bool {
        let kept = self.used.saturating_sub(self.cache);
        let thrashing = self.refaulted.saturating_sub(before.refaulted) >= THRASHING;
        self.used >= self.soft() && (thrashing || kept > self.soft() / 2)
    }

    /// Where the containers should be stopped: the first of those bounds that they have not reached,
    /// since reclaim to below one would keep the agent waiting; beyond both a little above what they
    /// use, so that the kernel still tells when they use more.
    pub(super) fn bound(self, growing: bool) -> u64 {
        let bounds = [(!growing).then(|| self.soft()), Some(self.hard())];
        let mut free = bounds.into_iter().flatten().filter(|&at| self.used < at);
        free.next().unwrap_or(self.used + BEYOND)
    }

    /// How much more to ask for: half as much again, so that few steps reach any size.
    pub(super) fn step(self) -> u64 {
        (self.total / 2).max(2 * BLOCK).next_multiple_of(BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * MIB;

    fn look(total: u64, used: u64, cache: u64) -> Look {
        Look {
            total,
            used,
            cache,
            refaulted: 0,
        }
    }

    #[test]
    fn the_bounds_leave_room_for_the_kernel_and_for_what_describes_the_next_step() {
        for total in [120 * MIB, 500 * MIB, 4 * GIB, 1 << 40] {
            let look = look(total, 0, 0);
            assert!(look.soft() <= look.hard() && look.hard() < total);
            assert!(
                total - look.hard() >= look.step() / 64 + 32 * MIB,
                "{total}"
            );
            assert!(look.step() >= total / 2 && look.step().is_multiple_of(BLOCK));
        }
    }

    #[test]
    fn memory_in_use_asks_for_more_and_files_read_once_do_not() {
        let soft = look(GIB, 0, 0).soft();
        for (used, cache, refaulted, needs) in [
            (soft, 0, 0, true),
            (soft - 1, 0, 0, false),
            (soft, soft / 4, 0, true),
            (soft, soft - 50 * MIB, 0, false),
            (soft, soft, 4 * MIB, true),
            // Counted in both by turns: more cache than use.
            (soft, 2 * soft, 0, false),
        ] {
            let now = Look {
                refaulted: 9 * MIB + refaulted,
                ..look(GIB, used, cache)
            };
            let before = Look {
                refaulted: 9 * MIB,
                ..now
            };
            assert_eq!(now.needs_more(before), needs, "{used} {cache} {refaulted}");
        }
    }

    #[test]
    fn a_bound_is_never_set_below_what_is_in_use() {
        let (soft, hard) = (look(GIB, 0, 0).soft(), look(GIB, 0, 0).hard());
        for (used, settled, growing) in [
            (0, soft, hard),
            (soft, hard, hard),
            (hard, hard + BEYOND, hard + BEYOND),
            (2 * GIB, 2 * GIB + BEYOND, 2 * GIB + BEYOND),
        ] {
            let look = look(GIB, used, 0);
            assert_eq!((look.bound(false), look.bound(true)), (settled, growing));
        }
    }
}
