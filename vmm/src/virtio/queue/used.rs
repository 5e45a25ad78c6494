//! Several chains in the used ring at once (virtio 1.3 §2.7.8).

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::Ram;

/// Adds heads and lengths to the used ring, and stores its index once, behind all of them. There are no
/// more than the ring has entries.
///
/// Tells whether the driver waits for one of them, or of those before them, beyond what
/// `Queue::needs_notification` will find: that counts this as one chain, which is the last.
pub(super) fn add_all(
    ring: &mut Queue,
    ram: &Ram,
    used: impl IntoIterator<Item = (u16, u32)>,
) -> Result<bool, Error> {
    let first = Wrapping(ring.next_used());
    let mut last = None;
    let places = (0..).map(|count| first + Wrapping(count));
    for (place, (head, written)) in places.zip(used) {
        if head >= ring.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        let element = [u32::from(head).to_le(), written.to_le()];
        ram.write_obj(element, element_at(ring, place)?)
            .map_err(Error::GuestMemory)?;
        last = Some((place, head, written));
    }
    let Some((place, head, written)) = last else {
        return Ok(false);
    };
    if place == first {
        ring.add_used(ram, head, written)?;
        return Ok(false);
    }
    let waited_before = ring.event_idx_enabled() && ring.needs_notification(ram)?;
    ring.set_next_used(place.0);
    ring.add_used(ram, head, written)?;
    Ok(waited_before || (ring.event_idx_enabled() && waits_within(ring, ram, first)?))
}

/// Whether `used_event` is one of the entries from `first` up to the next (§2.7.7.2).
fn waits_within(ring: &Queue, ram: &Ram, first: Wrapping<u16>) -> Result<bool, Error> {
    // As in Linux's `vring_need_event`: a driver that writes `used_event` after this has read it sees the
    // index that was stored before.
    fence(Ordering::SeqCst);
    let at = GuestAddress(ring.avail_ring())
        .checked_add(4 + 2 * u64::from(ring.size()))
        .ok_or(Error::AddressOverflow)?;
    let event = (ram.load(at, Ordering::Relaxed)).map_err(Error::GuestMemory)?;
    let event = Wrapping(u16::from_le(event));
    Ok(event - first < Wrapping(ring.next_used()) - first)
}

/// Where an entry of the used ring is.
fn element_at(ring: &Queue, index: Wrapping<u16>) -> Result<GuestAddress, Error> {
    let slot = u64::from(index.0 % ring.size());
    GuestAddress(ring.used_ring())
        .checked_add(4 + 8 * slot)
        .ok_or(Error::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Buffer, Driver};

    /// A driver whose indices stand at `start`, and heads of eight chains that the device has.
    fn eight_chains(start: u16) -> (Driver, Vec<u16>) {
        let mut driver = Driver::new(&[8]);
        driver.start_at(0, start);
        let heads = (0..8)
            .map(|_| {
                driver.add(0, &[Buffer::Writable(8)]);
                let chain = driver.queues().pop(0).unwrap().unwrap();
                chain.head_index()
            })
            .collect();
        (driver, heads)
    }

    #[test]
    fn chains_that_are_given_back_together_come_in_order_wherever_the_index_stands() {
        for start in [0, 5, u16::MAX - 4, u16::MAX] {
            let (mut driver, heads) = eight_chains(start);
            let mut queues = driver.queues();
            let used = heads
                .iter()
                .zip(1..)
                .map(|(&head, written)| (head, written));
            queues.push_all(0, used.clone().take(3)).unwrap();
            queues.push_all(0, []).unwrap();
            queues.push_all(0, used.skip(3)).unwrap();
            for (head, written) in heads.into_iter().zip(1..) {
                let used = driver.used(0).unwrap();
                assert_eq!((used.head, used.written.len()), (head, written));
            }
            assert!(driver.used(0).is_none());
        }
    }

    /// §2.7.7.2: whichever of them the driver waits for, among single ones and other groups.
    #[test]
    fn any_of_the_chains_may_be_the_one_that_the_driver_waits_for() {
        for start in [0, 5, u16::MAX - 4, u16::MAX] {
            for event in 0..=8 {
                let (mut driver, heads) = eight_chains(start);
                driver.wait_for(0, start.wrapping_add(event));
                let mut queues = driver.queues();
                queues.push(0, heads[0], 0).unwrap();
                for group in [&heads[1..4], &heads[4..5], &heads[5..7]] {
                    let used = group.iter().map(|&head| (head, 0));
                    queues.push_all(0, used).unwrap();
                }
                queues.push(0, heads[7], 0).unwrap();
                queues.notify(0).unwrap();
                queues.notify(0).unwrap();
                assert_eq!(driver.interrupted(), event < 8, "{start} {event}");
            }
        }
    }

    #[test]
    fn the_driver_is_interrupted_once_for_what_it_waited_for() {
        let (mut driver, heads) = eight_chains(0);
        let used = heads.iter().map(|&head| (head, 0));
        let mut queues = driver.queues();
        queues.push_all(0, used.clone().take(4)).unwrap();
        queues.notify(0).unwrap();
        assert!(driver.interrupted());
        let mut queues = driver.queues();
        queues.push_all(0, used.skip(4)).unwrap();
        queues.notify(0).unwrap();
        assert!(!driver.interrupted());
    }

    #[test]
    fn a_head_that_is_no_descriptor_is_given_back_to_nobody() {
        let (mut driver, heads) = eight_chains(0);
        let mut queues = driver.queues();
        let refused = queues.push_all(0, [(heads[0], 0), (8, 0), (heads[1], 0)]);
        assert!(refused.is_err());
        assert!(driver.used(0).is_none());
    }
}
