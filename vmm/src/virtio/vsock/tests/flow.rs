//! Credit, buffers, turns.

use super::*;

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let request = Header {
        buf_alloc: 1000,
        ..from_guest(Op::Request)
    };
    guest.send(request, &[]);
    guest.expect(Op::Response);
    let mut host = guest.dialled.try_recv().unwrap().1;
    let sent = pattern(2500);
    host.write_all(&sent).unwrap();

    let (mut received, ask) = guest.data();
    assert_eq!(received.len(), 1000);
    assert_eq!(ask.unwrap().op(), Some(Op::CreditRequest));
    guest.expect_nothing();

    for (fwd_cnt, asks) in [(1000, true), (2000, false)] {
        let update = Header {
            buf_alloc: 1000,
            fwd_cnt,
            ..from_guest(Op::CreditUpdate)
        };
        guest.send(update, &[]);
        let (data, ask) = guest.data();
        received.extend(data);
        assert_eq!(ask.is_some(), asks, "after {fwd_cnt}");
    }
    assert!(received == sent);
}

#[test]
fn the_guest_learns_of_room_before_it_runs_out() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let mut forwarded = 0_u32;
    let mut sent = 0_u32;
    let chunk = pattern(16 * 1024);
    for _ in 0..64 {
        assert!(sent - forwarded + 16 * 1024 <= BUF_ALLOC, "stuck at {sent}");
        guest.send(from_guest(Op::ReadWrite), &chunk);
        sent += 16 * 1024;
        read_all(&mut host);
        while let Some((header, _)) = guest.packet() {
            assert_eq!(header.op(), Some(Op::CreditUpdate));
            forwarded = header.fwd_cnt;
        }
    }
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::new();
    let _host = guest.connect();
    guest.send(from_guest(Op::CreditRequest), &[]);
    assert_eq!(guest.expect(Op::CreditUpdate).buf_alloc, BUF_ALLOC);
    guest.expect_nothing();
}

/// CVE-2020-16843 and Firecracker #6031 were this: no buffers, and then a freeze or a busy loop.
#[test]
fn without_buffers_the_device_sleeps_and_with_buffers_it_goes_on() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let sent = pattern(150_000);
    // Take all buffers away.
    while guest.driver.free(RX) < usize::from(QUEUE_SIZES[RX]) {
        host.write_all(&[7]).unwrap();
        guest.settle();
        guest.driver.used(RX).unwrap();
    }
    host.set_nonblocking(true).unwrap();
    let written = host.write(&sent).unwrap();
    guest.settle();
    assert!(guest.driver.used(RX).is_none());

    let mut received = Vec::<u8>::new();
    while received.len() < written {
        guest.post(3);
        while let Some(used) = guest.driver.used(RX) {
            received.extend(&used.written[HEADER_LEN..]);
        }
    }
    assert!(received == sent[..written]);
}

#[test]
fn a_busy_connection_does_not_keep_others_waiting() {
    let mut guest = Guest::new();
    let mut busy = guest.connect();
    let other = Header {
        src_port: GUEST_PORT + 1,
        ..from_guest(Op::Request)
    };
    guest.send(other, &[]);
    guest.expect(Op::Response);
    let mut quiet = guest.dialled.try_recv().unwrap().1;

    busy.set_nonblocking(true).unwrap();
    let flooded = busy.write(&pattern(200_000)).unwrap();
    assert!(flooded > 130_000);
    quiet.write_all(b"me too").unwrap();
    let mut before = 0;
    loop {
        let (header, data) = guest.packet().unwrap();
        if header.dst_port == GUEST_PORT + 1 {
            assert_eq!(data, b"me too");
            break;
        }
        before += data.len();
    }
    assert!(before <= 64 * 1024, "{before} bytes went first");
}

#[test]
fn a_buffer_that_no_packet_was_found_for_is_used_by_the_next() {
    let (sender, dialled) = mpsc::channel();
    let mut guest = Guest::starved(Vsock::new(3, Box::new(Switchboard(sender))).unwrap());
    guest.driver.add(RX, &[Buffer::Writable(RX_BUFFER)]);
    guest.send(from_guest(Op::Request), &[]);
    let mut host = dialled.try_recv().unwrap().1;
    guest.driver.used(RX).unwrap();

    // One whole turn: only another read tells that there is no more.
    for _ in 0..3 {
        guest.driver.add(RX, &[Buffer::Writable(40_000)]);
    }
    host.write_all(&pattern(64 * 1024)).unwrap();
    guest.settle();
    assert!(guest.driver.used(RX).is_some() && guest.driver.used(RX).is_some());
    assert!(guest.driver.used(RX).is_none());

    host.write_all(b"x").unwrap();
    guest.settle();
    assert_eq!(guest.driver.used(RX).unwrap().written[HEADER_LEN..], *b"x");
}

#[test]
fn more_packets_than_one_call_sends_are_sent_in_several() {
    let mut guest = Guest::new();
    let connections = 300;
    // All answers wait: there is no buffer.
    while guest.driver.free(RX) < usize::from(QUEUE_SIZES[RX]) {
        guest.send(from_guest(Op::ReadWrite), &[]);
        guest.driver.used(RX).unwrap();
    }
    for port in 0..connections {
        let request = Header {
            src_port: port,
            ..from_guest(Op::Request)
        };
        guest.send(request, &[]);
    }
    for _ in 0..256 {
        guest.driver.add(RX, &[Buffer::Writable(RX_BUFFER)]);
    }
    guest.vsock.serve(RX, &mut guest.driver.queues()).unwrap();
    for port in 0..connections {
        assert_eq!(guest.expect(Op::Response).dst_port, port);
    }
}

#[test]
fn data_the_guest_declines_half_way_is_not_sent() {
    for decline in [shutdown_of(SHUTDOWN_RECEIVE), from_guest(Op::Reset)] {
        let (sender, dialled) = mpsc::channel();
        let mut guest = Guest::starved(Vsock::new(3, Box::new(Switchboard(sender))).unwrap());
        guest.driver.add(RX, &[Buffer::Writable(RX_BUFFER)]);
        guest.send(from_guest(Op::Request), &[]);
        let mut host = dialled.try_recv().unwrap().1;
        host.write_all(&pattern(20_000)).unwrap();
        guest.driver.add(RX, &[Buffer::Writable(RX_BUFFER)]);
        guest.settle();
        guest.driver.used(RX).unwrap();
        guest.driver.used(RX).unwrap();

        guest.send(decline, &[]);
        guest.post(32);
        while let Some((header, _)) = guest.packet() {
            assert_ne!(header.op(), Some(Op::ReadWrite));
        }
    }
}
