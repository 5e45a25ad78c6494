//! How connections begin and end.

use super::*;

#[test]
fn the_guest_connects_and_bytes_go_both_ways() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    assert!(guest.driver.interrupted());

    guest.send(from_guest(Op::ReadWrite), b"ping");
    assert_eq!(read_all(&mut host), b"ping");

    host.write_all(b"pong").unwrap();
    let (header, data) = guest.packet().unwrap();
    assert_eq!(header.op(), Some(Op::ReadWrite));
    assert_eq!((header.src_port, header.dst_port), (HOST_PORT, GUEST_PORT));
    assert_eq!(header.buf_alloc, BUF_ALLOC);
    assert_eq!(header.fwd_cnt, 4);
    assert_eq!(data, b"pong");
    guest.expect_nothing();
    let counted = Traffic {
        to_guest: 4,
        from_guest: 4,
        errors: 0,
    };
    assert_eq!(guest.vsock.traffic(), counted);
}

#[test]
fn a_connect_nobody_takes_is_reset() {
    let mut guest = Guest::new();
    let request = Header {
        dst_port: 404,
        ..from_guest(Op::Request)
    };
    guest.send(request, &[]);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (404, GUEST_PORT));
    assert_eq!(guest.vsock.traffic().errors, 1);
}

#[test]
fn the_host_connects_once_the_guest_accepts() {
    let mut guest = Guest::new();
    let (ours, mut host) = UnixStream::pair().unwrap();
    host.write_all(b"early").unwrap();
    guest.vsock.connect(GUEST_PORT, ours.into());
    let request = guest.expect(Op::Request);
    assert_eq!(request.dst_port, GUEST_PORT);
    guest.expect_nothing();

    let answer = Header {
        dst_port: request.src_port,
        ..from_guest(Op::Response)
    };
    guest.send(answer, &[]);
    assert_eq!(guest.data().0, b"early");
}

#[test]
fn a_host_connect_the_guest_refuses_ends_the_socket() {
    let mut guest = Guest::new();
    let (ours, mut host) = UnixStream::pair().unwrap();
    guest.vsock.connect(GUEST_PORT, ours.into());
    let request = guest.expect(Op::Request);
    let refusal = Header {
        dst_port: request.src_port,
        ..from_guest(Op::Reset)
    };
    guest.send(refusal, &[]);
    assert!(at_end_of_file(&mut host));
    guest.expect_nothing();
}

/// A driver resets its device before it uses it.
#[test]
fn a_host_connect_before_the_driver_is_ready_waits_for_it() {
    let (sender, _) = mpsc::channel();
    let mut vsock = Vsock::new(3, Box::new(Switchboard(sender))).unwrap();
    let (ours, _host) = UnixStream::pair().unwrap();
    vsock.connect(GUEST_PORT, ours.into());
    vsock.reset();

    let mut guest = Guest::starved(vsock);
    guest.post(4);
    guest.expect(Op::Request);
}

#[test]
fn a_device_reset_ends_every_socket_and_the_next_driver_starts_afresh() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    guest.vsock.reset();
    assert!(at_end_of_file(&mut host));

    let mut guest = Guest {
        driver: Driver::new(&QUEUE_SIZES),
        ..guest
    };
    guest.vsock.activate(0, &mut guest.driver.queues()).unwrap();
    guest.post(8);
    guest.expect_nothing();
    guest.connect();
}

#[test]
fn end_of_file_reaches_the_guest_after_the_data() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let sent = pattern(100_000);
    host.write_all(&sent).unwrap();
    host.shutdown(Shutdown::Write).unwrap();

    let (received, shutdown) = guest.data();
    assert!(received == sent);
    let shutdown = shutdown.unwrap();
    assert_eq!(shutdown.op(), Some(Op::Shutdown));
    assert_eq!(shutdown.flags, SHUTDOWN_SEND);

    // The other way is open.
    guest.send(from_guest(Op::ReadWrite), b"answer");
    host.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut host), b"answer");

    // Until the host's end is gone altogether.
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
}

#[test]
fn end_of_file_reaches_the_host_after_data_its_socket_did_not_take_at_once() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let mut sent = 0;
    // The socket's buffer and ours fill up.
    while sent < BUF_ALLOC as usize {
        guest.send(from_guest(Op::ReadWrite), &pattern(BUF_ALLOC as usize / 4));
        sent += BUF_ALLOC as usize / 4;
        while guest.packet().is_some() {}
    }
    guest.send(shutdown_of(SHUTDOWN_SEND), &[]);
    let mut received = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => received.extend(&buffer[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => guest.settle(),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(received.len(), sent);
    assert!(received.ends_with(&pattern(BUF_ALLOC as usize / 4)));

    // The host may still answer.
    while guest.packet().is_some() {}
    host.write_all(b"done").unwrap();
    assert_eq!(guest.data().0, b"done");
}

/// virtio 1.3 §5.10.6.5: "a VIRTIO_VSOCK_OP_RST response from the peer" ends a clean disconnect.
#[test]
fn a_guest_that_closes_is_answered_at_once_and_its_last_bytes_still_arrive() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let chunk = pattern(BUF_ALLOC as usize / 4);
    let mut sent = 0;
    // Until the socket takes no more: the guest hears no more of its credit.
    loop {
        guest.send(from_guest(Op::ReadWrite), &chunk);
        sent += chunk.len();
        if guest.packet().is_none() {
            break;
        }
    }
    guest.send(shutdown_of(SHUTDOWN_BOTH), &[]);
    guest.expect(Op::Reset);

    // The ports are free again, while the old socket still drains.
    let mut again = guest.connect();
    let mut received = Vec::<u8>::new();
    let mut buffer = [0; 8192];
    loop {
        match host.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => received.extend(&buffer[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => guest.settle(),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(received.len(), sent);
    guest.send(from_guest(Op::ReadWrite), b"new");
    assert_eq!(read_all(&mut again), b"new");
}

#[test]
fn a_guest_that_will_not_receive_makes_the_host_s_writes_fail() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    guest.send(shutdown_of(SHUTDOWN_RECEIVE), &[]);
    assert_eq!(
        host.write_all(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    guest.send(from_guest(Op::ReadWrite), b"still here");
    assert_eq!(read_all(&mut host), b"still here");
}

#[test]
fn a_host_that_closes_in_the_middle_is_reported_after_its_last_bytes() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    host.write_all(b"last words").unwrap();
    drop(host);
    guest.send(from_guest(Op::ReadWrite), b"nobody reads this");

    let mut told = 0;
    let mut received = Vec::new();
    while let Some((header, data)) = guest.packet() {
        assert_eq!(told & SHUTDOWN_SEND, 0, "{header:?} after the last");
        told |= header.flags;
        received.extend(data);
    }
    assert_eq!(received, b"last words");
    assert_eq!(told, SHUTDOWN_BOTH);

    guest.send(from_guest(Op::Reset), &[]);
    guest.expect_nothing();
    // And without that reset the ports could have been used again as well.
    drop(guest.connect());
    guest.expect(Op::Shutdown);
    guest.connect();
}
