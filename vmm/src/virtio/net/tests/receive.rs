//! Frames from the host.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};

use super::*;

#[test]
fn a_frame_from_the_host_reaches_the_driver() {
    let mut guest = Guest::new(0);
    guest.post(4, 1526);
    guest.arrive(b"hello");
    let frame = guest.frame().unwrap();
    assert_eq!(&frame[VNET_HEADER_LEN..], b"hello");
    assert!(guest.driver.interrupted());
    assert!(guest.frame().is_none());
}

/// virtio 1.3 §5.1.6.4.1: "the device MUST set num_buffers to indicate the number of buffers".
#[test]
fn a_large_frame_is_spread_over_merged_buffers() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    guest.post(64, 1526);
    let data = pattern(60_000);
    guest.arrive(&data);
    guest.arrive(b"small");
    let frame = guest.frame().unwrap();
    assert_eq!(frame[NUM_BUFFERS], [40, 0]);
    assert!(frame[VNET_HEADER_LEN..] == data);
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"small");
}

/// virtio 1.3 §5.1.6.4.1: "The device MUST use all buffers used by a single receive packet together, such that
/// at least num_buffers are observed by driver as used."
#[test]
fn a_driver_that_looks_at_any_time_sees_all_buffers_of_a_frame_or_none() {
    const BUFFERS: u16 = 32;
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    let ram = guest.driver.ram.clone();
    let [_, _, used] = guest.driver.rings(RX);
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let looking = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !told.load(Ordering::Relaxed) {
            let index: u16 = ram.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
            seen.insert(index % BUFFERS);
        }
        seen
    });
    // More of them than the index has values, which are a multiple of a frame's.
    let data = pattern(usize::from(BUFFERS) * 20 - VNET_HEADER_LEN);
    for _ in 0..3000 {
        guest.post(BUFFERS.into(), 20);
        guest.arrive(&data);
        assert!(guest.frame().unwrap()[VNET_HEADER_LEN..] == data);
    }
    over.store(true, Ordering::Relaxed);
    assert_eq!(looking.join().unwrap(), BTreeSet::from([0]));
}

#[test]
fn a_driver_that_waits_for_any_buffer_of_a_frame_is_interrupted() {
    for event in 0..4 {
        let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
        guest.post(4, 20);
        guest.driver.wait_for(RX, event);
        guest.arrive(&pattern(20 + 20 + 8));
        guest.settle();
        // It is spread over three.
        assert_eq!(guest.driver.interrupted(), event < 3, "{event}");
    }
}

#[test]
fn without_merging_a_frame_larger_than_a_buffer_is_dropped_and_the_next_arrives() {
    let mut guest = Guest::new(0);
    guest.post(4, 1526);
    guest.arrive(&pattern(2000));
    guest.arrive(b"next");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"next");
    assert!(guest.frame().is_none());
    assert_eq!(guest.driver.free(RX), 256 - 3);
    let counted = Traffic {
        to_guest: 4,
        errors: 1,
        ..Traffic::default()
    };
    assert_eq!(guest.net.traffic(), counted);
}

/// Ingress without buffers must neither spin nor freeze the card for good.
#[test]
fn cve_2020_16843_frames_wait_without_work_until_the_driver_has_buffers() {
    let mut guest = Guest::new(0);
    for i in 0..5 {
        guest.arrive(&[i; 60]);
    }
    guest.settle();
    assert!(!readable(&guest.net));
    for i in 0..5 {
        guest.post(1, 1526);
        assert_eq!(guest.frame().unwrap()[VNET_HEADER_LEN..], [i; 60]);
    }
    assert!(guest.frame().is_none());
}

#[test]
fn a_frame_that_needs_more_buffers_than_there_are_waits_for_the_last_of_them() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    let data = pattern(4000);
    guest.post(1, 1500);
    guest.arrive(&data);
    guest.settle();
    guest.post(1, 1500);
    guest.settle();
    assert!(guest.driver.used(RX).is_none());
    guest.post(1, 1500);
    assert!(guest.frame().unwrap()[VNET_HEADER_LEN..] == data);
}

/// The same, by a frame that no buffers will ever hold.
#[test]
fn cve_2020_16843_a_frame_that_all_buffers_together_cannot_hold_is_dropped() {
    let mut guest = Guest::with_queues(1 << VIRTIO_NET_F_MRG_RXBUF, &[4, 4]);
    guest.post(4, 100);
    guest.arrive(&pattern(400));
    guest.arrive(b"fits");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"fits");
}

#[test]
fn a_flood_is_taken_in_turns() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    let mut received = 0;
    for _ in 0..200 {
        // As many as the socket holds.
        let mut sent = 0;
        while guest.wire.send(&[&PLAIN[..], b"flood"].concat()).is_ok() {
            sent += 1;
        }
        assert!(sent > 0);
        guest.post(guest.driver.free(RX), 128);
        while guest.frame().is_some() {
            received += 1;
        }
    }
    assert!(received > 256);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_is_refused() {
    for len in [0, 1, 11] {
        let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
        guest.driver.add(RX, &[Buffer::Writable(len)]);
        guest.arrive(b"x");
        let served = guest.net.serve_backend(&mut guest.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{len}");
    }
}

/// CVE-2026-45782: a head that is available twice.
#[test]
fn a_receive_buffer_available_twice_holds_what_was_written_last() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    let head = guest.driver.add(RX, &[Buffer::Writable(100)]);
    guest.driver.offer(RX, head);
    guest.arrive(&pattern(150));
    guest.settle();
    let used = guest.driver.used(RX).unwrap();
    assert_eq!(used.head, head);
    assert_eq!(used.written[..62], pattern(150)[88..]);
}
