//! Drivers that break the rules, or lean on them.

use super::*;

#[test]
fn a_guest_that_sends_without_credit_is_reset() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let chunk = pattern(BUF_ALLOC as usize);
    let mut reset = false;
    // Nobody reads: the socket's own buffer takes some, then ours.
    for _ in 0..16 {
        guest.send(from_guest(Op::ReadWrite), &chunk);
        while let Some((header, _)) = guest.packet() {
            reset |= header.op() == Some(Op::Reset);
        }
        if reset {
            break;
        }
    }
    assert!(reset);
    // What it sent within its credit still arrives, then the end.
    while !read_all(&mut host).is_empty() {
        guest.settle();
    }
    assert!(at_end_of_file(&mut host));
}

#[test]
fn a_thousand_connections_each_get_their_own_bytes_and_one_too_many_is_reset() {
    let mut guest = Guest::new();
    let mut hosts = Vec::new();
    for port in 0..u32::try_from(MAX_CONNECTIONS).unwrap() {
        let request = Header {
            src_port: port,
            ..from_guest(Op::Request)
        };
        guest.send(request, &[]);
        guest.expect(Op::Response);
        hosts.push(guest.dialled.try_recv().unwrap().1);
    }
    guest.send(from_guest(Op::Request), &[]);
    guest.expect(Op::Reset);

    for (port, host) in (0_u32..).zip(&mut hosts) {
        host.write_all(&port.to_le_bytes()).unwrap();
    }
    let mut seen = 0;
    while let Some((header, data)) = guest.packet() {
        assert_eq!(data, header.dst_port.to_le_bytes());
        seen += 1;
    }
    assert_eq!(seen, MAX_CONNECTIONS);

    hosts.clear();
    let mut ended = 0;
    while let Some((header, _)) = guest.packet() {
        assert_eq!(header.flags, SHUTDOWN_BOTH);
        let reset = Header {
            src_port: header.dst_port,
            ..from_guest(Op::Reset)
        };
        guest.send(reset, &[]);
        ended += 1;
    }
    assert_eq!(ended, MAX_CONNECTIONS);
    guest.connect();
}

#[test]
fn packets_of_no_connection_are_answered_as_the_specification_says() {
    let unknown_kind = Header {
        kind: 9,
        ..from_guest(Op::Request)
    };
    let elsewhere = Header {
        dst_cid: 77,
        ..from_guest(Op::Request)
    };
    let forged = Header {
        src_cid: 4,
        ..from_guest(Op::Request)
    };
    let unknown_op = Header {
        op: 99,
        ..from_guest(Op::Request)
    };
    for (header, reset) in [
        // "A VIRTIO_VSOCK_OP_RST reply MUST be sent if a packet is received with an unknown type"
        (unknown_kind, true),
        (unknown_op, true),
        (from_guest(Op::Response), true),
        (from_guest(Op::ReadWrite), true),
        (from_guest(Op::CreditRequest), true),
        (shutdown_of(SHUTDOWN_BOTH), true),
        // Two that reset each other would never end.
        (from_guest(Op::Reset), false),
        (forged, false),
    ] {
        let mut guest = Guest::new();
        guest.send(header, &[]);
        if reset {
            assert_eq!(guest.expect(Op::Reset).kind, header.kind, "{header:?}");
        }
        guest.expect_nothing();
        assert!(guest.dialled.try_recv().is_err(), "{header:?}");
    }

    let mut guest = Guest::new();
    guest.send(elsewhere, &[]);
    guest.settle();
    let used = guest.driver.used(RX).unwrap();
    let reset = Header::decode(used.written.first_chunk().unwrap());
    assert_eq!((reset.op(), reset.src_cid), (Some(Op::Reset), 77));
}

#[test]
fn packets_a_connection_is_not_in_the_state_for_end_it() {
    for header in [
        from_guest(Op::Request),
        from_guest(Op::Response),
        Header {
            op: 0,
            ..from_guest(Op::Request)
        },
    ] {
        let mut guest = Guest::new();
        let mut host = guest.connect();
        guest.send(header, &[]);
        guest.expect(Op::Reset);
        guest.expect_nothing();
        assert!(at_end_of_file(&mut host), "{header:?}");
    }
}

#[test]
fn data_after_the_guest_said_there_would_be_none_ends_the_connection() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    guest.send(shutdown_of(SHUTDOWN_SEND), &[]);
    guest.expect(Op::Shutdown);
    guest.send(from_guest(Op::ReadWrite), b"more");
    guest.expect(Op::Reset);
    assert!(at_end_of_file(&mut host));
}

/// The length a header claims against the descriptors that carry it.
#[test]
fn cve_2019_18960_buffers_that_do_not_hold_what_they_claim_are_refused() {
    let honest = from_guest(Op::ReadWrite);
    let claims_one = Header { len: 1, ..honest }.encode();
    let claims_all = Header {
        len: u32::MAX,
        ..honest
    }
    .encode();
    let short = &honest.encode()[..HEADER_LEN - 1];
    let outside = Buffer::Raw(1 << 40, 44, 0);
    let wrapping = Buffer::Raw(u64::MAX - 10, 44, 0);
    let far = Buffer::Raw(0x100_0000, u32::MAX, 0);
    let table: [&[Buffer<'_>]; 9] = [
        &[Buffer::Readable(&[])],
        &[Buffer::Readable(short)],
        &[Buffer::Readable(&claims_one)],
        &[Buffer::Readable(&claims_all)],
        &[Buffer::Readable(&claims_all), Buffer::Readable(&[0; 4096])],
        // Data in a buffer that is the device's to write is no data.
        &[Buffer::Readable(&claims_one), Buffer::Writable(1)],
        &[outside],
        &[wrapping],
        &[Buffer::Readable(&claims_all), far],
    ];
    for chain in table {
        let mut guest = Guest::new();
        let mut host = guest.connect();
        guest.driver.add(TX, chain);
        let served = guest.vsock.serve(TX, &mut guest.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{chain:?}");
        assert!(read_all(&mut host).is_empty(), "{chain:?}");
    }
}

#[test]
fn a_packet_spread_over_many_descriptors_is_one_packet() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let header = Header {
        len: 5,
        ..from_guest(Op::ReadWrite)
    }
    .encode();
    let chain = [
        Buffer::Readable(&header[..7]),
        Buffer::Readable(&header[7..]),
        Buffer::Readable(b"he"),
        Buffer::Readable(b"llo and more than it says"),
    ];
    guest.driver.add(TX, &chain);
    guest.vsock.serve(TX, &mut guest.driver.queues()).unwrap();
    assert_eq!(read_all(&mut host), b"hello");
}

#[test]
fn a_buffer_without_room_for_a_packet_is_refused() {
    for len in [0, 1, u32::try_from(HEADER_LEN).unwrap()] {
        let (sender, _) = mpsc::channel();
        let mut guest = Guest::starved(Vsock::new(3, Box::new(Switchboard(sender))).unwrap());
        guest.driver.add(RX, &[Buffer::Writable(len)]);
        guest.send_unserved(from_guest(Op::ReadWrite));
        let served = guest.vsock.serve(TX, &mut guest.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{len}");
    }
}

#[test]
fn a_driver_that_takes_no_packets_costs_only_bounded_memory() {
    let (sender, dialled) = mpsc::channel();
    let mut guest = Guest::starved(Vsock::new(3, Box::new(Switchboard(sender))).unwrap());
    for port in 0..5000 {
        let lost = Header {
            src_port: port,
            ..from_guest(Op::ReadWrite)
        };
        guest.send(lost, &[]);
        let request = Header {
            src_port: port,
            ..from_guest(Op::Request)
        };
        guest.send(request, &[]);
        for _ in 0..3 {
            let ask = Header {
                src_port: port,
                ..from_guest(Op::CreditRequest)
            };
            guest.send(ask, &[]);
        }
    }
    guest.settle();
    assert_eq!(dialled.try_iter().count(), MAX_CONNECTIONS);

    let mut packets = 0;
    guest.post(128);
    while guest.packet().is_some() {
        packets += 1;
    }
    // The resets that were kept, then a response and a credit update for each connection, and the
    // end of each: the test closed the sockets.
    assert!(packets <= 256 + 3 * MAX_CONNECTIONS, "{packets}");
}

#[test]
fn reserved_context_identifiers_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        let (sender, _) = mpsc::channel();
        let refused = Vsock::new(cid, Box::new(Switchboard(sender)));
        assert!(matches!(refused, Err(VsockError::ReservedCid(c)) if c == cid));
    }
}

#[test]
fn the_host_s_connects_count_as_well() {
    let mut guest = Guest::new();
    let mut hosts = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let (ours, host) = UnixStream::pair().unwrap();
        guest.vsock.connect(GUEST_PORT, ours.into());
        hosts.push(host);
    }
    let (ours, mut one_too_many) = UnixStream::pair().unwrap();
    guest.vsock.connect(GUEST_PORT, ours.into());
    assert!(at_end_of_file(&mut one_too_many));

    let mut ports = std::collections::HashSet::new();
    while let Some((header, _)) = guest.packet() {
        ports.insert(header.src_port);
    }
    assert_eq!(ports.len(), MAX_CONNECTIONS);
}

/// CVE-2026-45782: a head that is available twice.
#[test]
fn a_packet_available_twice_is_two_packets() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    let header = Header {
        len: 2,
        ..from_guest(Op::ReadWrite)
    }
    .encode();
    let chain = [Buffer::Readable(&header), Buffer::Readable(b"ab")];
    let head = guest.driver.add(TX, &chain);
    guest.driver.offer(TX, head);
    guest.vsock.serve(TX, &mut guest.driver.queues()).unwrap();
    assert_eq!(read_all(&mut host), b"abab");
}

/// A random driver and a random host: no packet, in any order, panics, spins or grows without bound.
#[test]
fn no_sequence_of_packets_and_sockets_breaks_the_device() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20 {
        let mut guest = Guest::new();
        let mut hosts: Vec<UnixStream> = Vec::new();
        for _ in 0..500 {
            match random.below(10) {
                0..6 => {
                    let header = random.header();
                    let len = if header.op == Op::ReadWrite as u16 {
                        random.below(3000)
                    } else {
                        0
                    };
                    guest.send(header, &pattern(len as usize));
                }
                6 => {
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    theirs.set_nonblocking(true).unwrap();
                    guest.vsock.connect(random.below(3), ours.into());
                    hosts.push(theirs);
                }
                7 => {
                    if let Some(host) = hosts.get_mut(random.below(8) as usize) {
                        let _ = host.write(&pattern(random.below(9000) as usize));
                        let _ = host.read(&mut [0; 4096]);
                    }
                }
                8 => {
                    if random.below(3) == 0 && !hosts.is_empty() {
                        hosts.swap_remove(0);
                    }
                }
                _ => {
                    for _ in 0..random.below(64) {
                        guest.settle();
                        if guest.driver.used(RX).is_some() {
                            guest.post(1);
                        }
                    }
                }
            }
            hosts.extend(guest.dialled.try_iter().map(|(_, socket)| socket));
        }
        guest.settle();
    }
}

/// xorshift64: the same sequence each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(bound)).unwrap()
    }

    /// Mostly well-formed, of few ports, so that packets meet connections.
    fn header(&mut self) -> Header {
        let rare = |this: &mut Self| this.below(16) == 0;
        Header {
            src_cid: GUEST_CID + u64::from(rare(self)),
            dst_cid: HOST_CID + u64::from(rare(self)),
            src_port: self.below(3),
            dst_port: if self.below(2) == 0 {
                HOST_PORT
            } else {
                (1 << 30) + self.below(8)
            },
            kind: TYPE_STREAM + u16::from(rare(self)),
            op: u16::try_from(self.below(9)).unwrap(),
            flags: self.below(4),
            buf_alloc: self.below(20_000),
            fwd_cnt: self.below(20_000),
            ..Header::default()
        }
    }
}
