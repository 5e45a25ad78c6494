//! Page numbers as the driver writes them, joined into ranges. Pure.

use std::ops::Range;

/// Bytes of a page, whatever the guest's own pages are (virtio 1.3 §5.5.6).
pub(super) const PAGE: u64 = 4096;

/// The addresses of the pages in an array of little-endian 32-bit numbers, neighbours joined, in
/// the array's order. A last number that is cut off does not count.
pub(super) fn ranges(array: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let (numbers, _) = array.as_chunks();
    for &number in numbers {
        let start = u64::from(u32::from_le_bytes(number)) * PAGE;
        let end = start + PAGE;
        match ranges.last_mut() {
            // Linux fills the array from the end of a free block.
            Some(last) if last.start == end => last.start = start,
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// The whole pages in `length` bytes from `start` on; nothing if they wrap.
pub(super) fn whole_pages(start: u64, length: u64) -> Range<u64> {
    let end = start.checked_add(length).unwrap_or(start) / PAGE * PAGE;
    let start = start.checked_next_multiple_of(PAGE).unwrap_or(end);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn array(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    #[test]
    fn neighbours_are_joined_in_either_direction() {
        let joined = ranges(&array(&[7, 8, 6, 3, 100, 99]));
        assert_eq!(joined, [0x6000..0x9000, 0x3000..0x4000, 0x6_3000..0x6_5000]);
        assert_eq!(ranges(&[1, 0, 0]), []);
        let last = u64::from(u32::MAX) * PAGE;
        assert_eq!(
            ranges(&array(&[u32::MAX])).first(),
            Some(&(last..last + PAGE))
        );
    }

    #[test]
    fn pages_that_are_reported_in_part_stay() {
        for (start, length, expected) in [
            (0x1000, 0x2000, 0x1000..0x3000),
            (0x1001, 0x2000, 0x2000..0x3000),
            (0x1fff, 0x1001, 0x2000..0x3000),
            (0x1001, 0xfff, 0x2000..0x2000),
        ] {
            assert_eq!(
                whole_pages(start, length),
                expected,
                "{start:#x} {length:#x}"
            );
        }
        for (start, length) in [(u64::MAX, 1), (u64::MAX - 1, u64::MAX), (0x1800, 0), (5, 7)] {
            assert!(
                whole_pages(start, length).is_empty(),
                "{start:#x} {length:#x}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_page_of_the_array_and_no_other_is_in_a_range(numbers in vec(0..64_u32, 0..100)) {
            let mut named = [false; 64];
            for &number in &numbers {
                named[number as usize] = true;
            }
            let mut covered = [false; 64];
            for range in ranges(&array(&numbers)) {
                for page in range.step_by(4096) {
                    covered[usize::try_from(page / PAGE).unwrap()] = true;
                }
            }
            prop_assert_eq!(covered, named);
        }
    }
}
