//! Which blocks of the region are plugged: a bit each. Pure.

use std::ops::Range;

/// What a range of blocks is (virtio 1.3 §5.15.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// All of it is memory.
    Plugged,
    /// None of it is.
    Unplugged,
    /// Some of it is.
    Mixed,
}

/// The blocks of a region, none of them plugged at first.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    words: Vec<u64>,
    plugged: usize,
}

impl Blocks {
    pub(super) fn new(count: usize) -> Self {
        Self {
            words: vec![0; count.div_ceil(64)],
            plugged: 0,
        }
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> usize {
        self.plugged
    }

    /// How many of a range are.
    fn plugged_of(&self, range: Range<usize>) -> usize {
        let ones = |(word, mask): (usize, u64)| (self.words[word] & mask).count_ones() as usize;
        masks(range).map(ones).sum()
    }

    /// What a range is. An empty one is unplugged.
    pub(super) fn state(&self, range: Range<usize>) -> State {
        let length = range.len();
        match self.plugged_of(range) {
            0 => State::Unplugged,
            some if some == length => State::Plugged,
            _ => State::Mixed,
        }
    }

    /// Plugs or unplugs a range, whatever it was.
    pub(super) fn set(&mut self, range: Range<usize>, plugged: bool) {
        self.plugged -= self.plugged_of(range.clone());
        if plugged {
            self.plugged += range.len();
        }
        for (word, mask) in masks(range) {
            match plugged {
                true => self.words[word] |= mask,
                false => self.words[word] &= !mask,
            }
        }
    }
}

/// The words that a range has bits in, and which bits.
fn masks(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let words = range.start / 64..range.end.div_ceil(64);
    words.map(move |word| {
        let first = range.start.saturating_sub(word * 64).min(64);
        let end = range.end.saturating_sub(word * 64).min(64);
        let below = |bit: usize| match bit {
            64 => u64::MAX,
            bit => (1 << bit) - 1,
        };
        (word, below(end) & !below(first))
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const COUNT: usize = 200;

    proptest! {
        #[test]
        fn the_bits_are_what_a_list_of_blocks_would_be(
            steps in vec((0..COUNT, 0..COUNT, any::<bool>()), 0..60),
        ) {
            let mut blocks = Blocks::new(COUNT);
            let mut list = [false; COUNT];
            for (a, b, plugged) in steps {
                let range = a.min(b)..a.max(b);
                let ones = list[range.clone()].iter().filter(|&&one| one).count();
                let state = match ones {
                    0 => State::Unplugged,
                    all if all == range.len() => State::Plugged,
                    _ => State::Mixed,
                };
                prop_assert_eq!(blocks.state(range.clone()), state);
                blocks.set(range.clone(), plugged);
                list[range].fill(plugged);
                prop_assert_eq!(blocks.plugged(), list.iter().filter(|&&one| one).count());
            }
        }
    }
}
