//! The card between a fake driver and a pair of datagram sockets for a tap.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::backend::tap::Offloads;
use crate::virtio::queue::testing::{Buffer, Driver};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TSO: u64 = header::F_CSUM | header::F_HOST_TSO4;
/// A header that asks for nothing.
const PLAIN: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

/// What the test can see and do behind the tap's back.
#[derive(Debug, Default)]
struct Host {
    offloads: Vec<Offloads>,
    deleted: bool,
}

#[derive(Debug)]
struct FakeTap {
    socket: UnixDatagram,
    host: Arc<Mutex<Host>>,
}

impl Tap for FakeTap {
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        if self.host.lock().unwrap().deleted {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        self.socket.recv(frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(|_| ())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.host.lock().unwrap().offloads.push(offloads);
        Ok(())
    }
}

impl AsFd for FakeTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

struct Guest {
    driver: Driver,
    net: Net<FakeTap>,
    /// The other end of the tap.
    wire: UnixDatagram,
    host: Arc<Mutex<Host>>,
}

impl Guest {
    fn new(features: u64) -> Self {
        Self::with_queues(features, &QUEUE_SIZES)
    }

    fn with_queues(features: u64, sizes: &[u16]) -> Self {
        Self::with(features, sizes, Limits::default())
    }

    fn with(features: u64, sizes: &[u16], limits: Limits) -> Self {
        let (tap, wire, host) = fake_tap();
        let mut net = Net::new(MAC, Some(1500), limits).unwrap();
        net.plug(tap).unwrap();
        let mut driver = Driver::new(sizes);
        net.activate(features, &mut driver.queues()).unwrap();
        Self {
            driver,
            net,
            wire,
            host,
        }
    }

    /// Posts receive buffers of `len` bytes, and notifies if the device wants it.
    fn post(&mut self, buffers: usize, len: u32) {
        for _ in 0..buffers {
            self.driver.add(RX, &[Buffer::Writable(len)]);
            if self.driver.device_listens(RX) {
                self.net.serve(RX, &mut self.driver.queues()).unwrap();
            }
        }
    }

    /// Sends a frame and lets the event loop run.
    fn send(&mut self, chain: &[Buffer<'_>]) {
        self.driver.add(TX, chain);
        if self.driver.device_listens(TX) {
            self.net.serve(TX, &mut self.driver.queues()).unwrap();
        }
        self.settle();
    }

    /// Lets the event loop run until it would sleep; panics if it never does.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut idle = true;
            if readable(&self.net) {
                let mut queues = self.driver.queues();
                self.net.serve_backend(&mut queues).unwrap();
                idle = false;
            }
            for queue in [RX, TX] {
                if self.driver.kicked(queue) {
                    let mut queues = self.driver.queues();
                    self.net.serve(queue, &mut queues).unwrap();
                    idle = false;
                }
            }
            if idle {
                return;
            }
        }
        panic!("the event loop spins");
    }

    /// The next frame the driver receives, merged, with its header.
    fn frame(&mut self) -> Option<Vec<u8>> {
        self.settle();
        let mut frame = self.driver.used(RX)?.written;
        let buffers = u16::from_le_bytes(frame[NUM_BUFFERS].try_into().unwrap());
        for _ in 1..buffers {
            frame.extend(self.driver.used(RX).unwrap().written);
        }
        Some(frame)
    }

    /// Puts a frame on the wire.
    fn arrive(&self, data: &[u8]) {
        self.wire.send(&[&PLAIN, data].concat()).unwrap();
    }

    /// Takes a frame off the wire, without its header.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; MAX_FRAME];
        let len = self.wire.recv(&mut frame).ok()?;
        Some(frame[VNET_HEADER_LEN..len].to_vec())
    }
}

/// A tap, its other end, and what is behind it.
fn fake_tap() -> (FakeTap, UnixDatagram, Arc<Mutex<Host>>) {
    let (socket, wire) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let host = Arc::new(Mutex::new(Host::default()));
    let tap = FakeTap {
        socket,
        host: Arc::clone(&host),
    };
    (tap, wire, host)
}

fn readable(net: &Net<FakeTap>) -> bool {
    let backend = net.backend().unwrap();
    let mut fds = [PollFd::new(&backend, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

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
    let mut guest = Guest::new(header::F_MRG_RXBUF);
    guest.post(64, 1526);
    let data = pattern(60_000);
    guest.arrive(&data);
    guest.arrive(b"small");
    let frame = guest.frame().unwrap();
    assert_eq!(frame[NUM_BUFFERS], [40, 0]);
    assert!(frame[VNET_HEADER_LEN..] == data);
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"small");
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
    let mut guest = Guest::new(header::F_MRG_RXBUF);
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
    let mut guest = Guest::with_queues(header::F_MRG_RXBUF, &[4, 4]);
    guest.post(4, 100);
    guest.arrive(&pattern(400));
    guest.arrive(b"fits");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"fits");
}

#[test]
fn a_flood_is_taken_in_turns() {
    let mut guest = Guest::new(header::F_MRG_RXBUF);
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
        let mut guest = Guest::new(header::F_MRG_RXBUF);
        guest.driver.add(RX, &[Buffer::Writable(len)]);
        guest.arrive(b"x");
        let served = guest.net.serve_backend(&mut guest.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{len}");
    }
}

#[test]
fn a_deleted_tap_is_left_alone_and_frames_to_it_are_dropped() {
    let mut guest = Guest::new(0);
    guest.post(2, 1526);
    guest.host.lock().unwrap().deleted = true;
    guest.arrive(b"x");
    guest.settle();
    assert!(guest.frame().is_none());
    let Guest {
        mut driver,
        mut net,
        wire,
        ..
    } = guest;
    drop(wire);
    let chain = [Buffer::Readable(&PLAIN), Buffer::Readable(b"lost")];
    driver.add(TX, &chain);
    net.serve(TX, &mut driver.queues()).unwrap();
    assert!(driver.used(TX).is_some());
    assert!(!readable(&net));
    // Not even a reset brings it back.
    net.reset();
    assert!(!readable(&net));
}

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
    let tap = guest.net.tap.as_ref().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(tap, 8192).unwrap();
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
        assert_eq!(guest.net.transmit, Transmit::Blocked);
        for frame in &frames[..posted] {
            assert_eq!(guest.sent().unwrap(), frame);
            guest.settle();
        }
        assert!(guest.sent().is_none());
        while guest.driver.used(TX).is_some() {}
        assert_eq!(guest.driver.free(TX), 256);
    }
}

/// CVE-2026-45782: a head that is available twice.
#[test]
fn a_receive_buffer_available_twice_holds_what_was_written_last() {
    let mut guest = Guest::new(header::F_MRG_RXBUF);
    let head = guest.driver.add(RX, &[Buffer::Writable(100)]);
    guest.driver.offer(RX, head);
    guest.arrive(&pattern(150));
    guest.settle();
    let used = guest.driver.used(RX).unwrap();
    assert_eq!(used.head, head);
    assert_eq!(used.written[..62], pattern(150)[88..]);
}

#[test]
fn the_tap_is_told_what_the_driver_accepted_each_time() {
    let mut guest = Guest::new(header::F_GUEST_CSUM | header::F_GUEST_TSO4);
    guest.net.reset();
    guest.net.activate(0, &mut guest.driver.queues()).unwrap();
    let tso4 = Offloads {
        checksum: true,
        tso4: true,
        ..Offloads::default()
    };
    let offloads = &guest.host.lock().unwrap().offloads;
    assert_eq!(*offloads, [Offloads::default(), tso4, Offloads::default()]);
}

#[test]
fn a_reset_forgets_a_frame_that_waited() {
    let mut guest = Guest::new(0);
    guest.arrive(b"stale");
    guest.settle();
    guest.net.reset();
    guest.net.activate(0, &mut guest.driver.queues()).unwrap();
    guest.post(2, 1526);
    guest.arrive(b"fresh");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"fresh");
}

#[test]
fn addresses_and_mtus_no_card_can_have_are_refused() {
    let card = |mac, mtu| Net::<FakeTap>::new(mac, mtu, Limits::default());
    assert!(matches!(card(MAC, Some(67)), Err(NetError::Mtu(67))));
    assert!(matches!(card([0; 6], None), Err(NetError::Mac(_))));
    assert!(matches!(
        card([1, 0, 0, 0, 0, 1], None),
        Err(NetError::Mac(_))
    ));
    assert!(card(MAC, Some(68)).is_ok());
}

#[test]
fn a_driver_is_told_an_mtu_only_if_there_is_one() {
    let card = |mtu| Net::<FakeTap>::new(MAC, mtu, Limits::default()).unwrap();
    let offers = |mtu| card(mtu).features() & header::F_MTU != 0;
    assert!(offers(Some(1500)));
    assert!(!offers(None));
}

#[test]
fn a_card_takes_another_tap_while_it_runs() {
    let mut guest = Guest::new(header::F_GUEST_CSUM | header::F_GUEST_TSO4);
    guest.post(4, 1526);
    guest.arrive(b"first");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"first");

    let (tap, wire, host) = fake_tap();
    guest.net.plug(tap).unwrap();
    (guest.wire, guest.host) = (wire, host);
    guest.arrive(b"second");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"second");
    guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(b"out")]);
    assert_eq!(guest.sent().unwrap(), b"out");
    // The new tap learnt what the driver had agreed to.
    assert!(guest.host.lock().unwrap().offloads[0].tso4);
}

/// Fifty frames a second, of which one at once.
fn slow() -> RateLimiter {
    let operations = vmm_control::TokenBucket {
        per_second: std::num::NonZeroU64::new(50).unwrap(),
        burst: 1,
    };
    RateLimiter::new(vmm_control::RateLimit {
        operations: Some(operations),
        bytes: None,
    })
    .unwrap()
}

/// Waits for the next event, which is to come without anybody's doing.
fn wait(guest: &mut Guest) {
    let backend = guest.net.backend().unwrap();
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&backend, PollFlags::IN)], Some(&patience));
    assert_eq!(ready, Ok(1));
    guest.settle();
}

#[test]
fn a_guest_that_sends_more_than_its_limit_waits_and_loses_nothing() {
    let limits = Limits {
        transmit: slow(),
        ..Limits::default()
    };
    let mut guest = Guest::with(0, &QUEUE_SIZES, limits);
    for i in 0..4 {
        guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(&[i])]);
    }
    assert!(guest.driver.free(TX) < usize::from(QUEUE_SIZES[TX]));
    for i in 0..4 {
        let sent = loop {
            match guest.sent() {
                Some(sent) => break sent,
                None => wait(&mut guest),
            }
        };
        assert_eq!(sent, [i]);
    }
}

#[test]
fn a_guest_that_is_sent_more_than_its_limit_gets_it_later() {
    let limits = Limits {
        receive: slow(),
        ..Limits::default()
    };
    let mut guest = Guest::with(0, &QUEUE_SIZES, limits);
    guest.post(8, 1526);
    for i in 0..4 {
        guest.arrive(&[i; 60]);
    }
    let mut waits = 0;
    for i in 0..4 {
        let frame = loop {
            match guest.frame() {
                Some(frame) => break frame,
                None => wait(&mut guest),
            }
            waits += 1;
        };
        assert_eq!(frame[VNET_HEADER_LEN..], [i; 60]);
    }
    assert!(waits > 0, "all came at once");
}

#[test]
fn a_card_without_a_tap_takes_frames_and_loses_them() {
    let mut net = Net::<FakeTap>::new(MAC, None, Limits::default()).unwrap();
    let mut driver = Driver::new(&QUEUE_SIZES);
    net.activate(0, &mut driver.queues()).unwrap();
    driver.add(TX, &[Buffer::Readable(&PLAIN), Buffer::Readable(b"lost")]);
    net.serve(TX, &mut driver.queues()).unwrap();
    assert!(driver.used(TX).is_some());
}
