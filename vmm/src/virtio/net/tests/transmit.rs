//! Frames from the driver.

use super::*;

#[test]
fn a_frame_from_the_driver_reaches_the_host() {
    let mut guest = Guest::new(0);
    let data = pattern(1514);
    // However it is spread.
    guest.send(&[
        Buffer::Readable(&PLAIN[..5]),
        Buffer::Readable(&PLAIN[5..]),
        Buffer::Readable(&data[..14]),
        Buffer::Readable(&data[14..]),
    ]);
    assert!(guest.sent().unwrap() == data);
    assert!(guest.driver.used(TX).unwrap().written.is_empty());
    assert!(guest.driver.interrupted());
}

#[test]
fn the_largest_packet_is_sent_and_a_larger_frame_is_dropped() {
    let mut guest = Guest::new(TSO);
    let header = [1, 1, 0, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let largest = pattern(MAX_FRAME - VNET_HEADER_LEN);
    guest.send(&[Buffer::Readable(&header), Buffer::Readable(&largest)]);
    assert!(guest.sent().unwrap() == largest);

    let larger = pattern(largest.len() + 1);
    guest.send(&[Buffer::Readable(&header), Buffer::Readable(&larger)]);
    assert!(guest.sent().is_none());
    assert_eq!(guest.driver.free(TX), 252);
    while guest.driver.used(TX).is_some() {}
    assert_eq!(guest.driver.free(TX), 256);
}

#[test]
fn a_frame_that_asks_for_what_was_not_negotiated_is_dropped() {
    let mut guest = Guest::new(0);
    let tso = [1, 1, 0, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    guest.send(&[Buffer::Readable(&tso), Buffer::Readable(&pattern(3000))]);
    guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(b"plain")]);
    assert_eq!(guest.sent().unwrap(), b"plain");
    assert!(guest.sent().is_none());
    let counted = Traffic {
        from_guest: 5,
        errors: 1,
        ..Traffic::default()
    };
    assert_eq!(guest.net.traffic(), counted);
    assert!(guest.driver.used(TX).is_some());
    assert!(guest.driver.used(TX).is_some());
}

#[test]
fn frames_without_a_header_are_refused() {
    let outside = Buffer::Raw(1 << 40, 64, 0);
    let wrapping = Buffer::Raw(u64::MAX - 10, 64, 0);
    let table: [&[Buffer<'_>]; 5] = [
        &[Buffer::Readable(&[])],
        &[Buffer::Readable(&PLAIN[..11])],
        // The device's to write: no frame.
        &[Buffer::Readable(&PLAIN[..11]), Buffer::Writable(60)],
        &[outside],
        &[Buffer::Readable(&PLAIN), wrapping],
    ];
    for chain in table {
        let mut guest = Guest::new(0);
        guest.driver.add(TX, chain);
        let served = guest.net.serve(TX, &mut guest.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{chain:?}");
        assert!(guest.sent().is_none());
    }
}

#[test]
fn a_full_tap_is_waited_for_and_no_frame_is_lost_or_moved() {
    let mut guest = Guest::new(0);
    // A few small frames and it is full.
    let tap = guest.net.first.tap().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&*tap, 8192).unwrap();
    let frames: Vec<[u8; 2]> = (0..256_u16).map(u16::to_le_bytes).collect();
    for _ in 0..3 {
        for frame in &frames {
            guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(frame)]);
            if guest.driver.free(TX) < 2 {
                break;
            }
        }
        let posted = (256 - guest.driver.free(TX)) / 2;
        assert!(posted > 100);
        assert!(guest.net.first.is_blocked());
        for frame in &frames[..posted] {
            assert_eq!(guest.sent().unwrap(), frame);
            guest.settle();
        }
        assert!(guest.sent().is_none());
        while guest.driver.used(TX).is_some() {}
        assert_eq!(guest.driver.free(TX), 256);
    }
}
