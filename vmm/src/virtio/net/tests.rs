//! The card between a fake driver and a pair of datagram sockets for a tap.

mod limits;
mod pairs;
mod receive;
mod transmit;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MTU,
};

use super::pair::{MAX_FRAME, NUM_BUFFERS, RX, TX};
use super::*;
use crate::backend::tap::{Offloads, VNET_HEADER_LEN};
use crate::rate_limit::RateLimiter;
use crate::virtio::queue::testing::{Buffer, Driver};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TSO: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
/// A header that asks for nothing.
const PLAIN: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

/// What the test can see and do behind the tap's back.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) offloads: Vec<Offloads>,
    detached: bool,
    pub(super) deleted: bool,
}

#[derive(Debug)]
pub(super) struct FakeTap {
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
        let mut host = self.host.lock().unwrap();
        if host.deleted {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        host.offloads.push(offloads);
        Ok(())
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        let mut host = self.host.lock().unwrap();
        // As the kernel has it.
        if host.detached != attached || host.deleted {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        host.detached = !attached;
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
        let mut net = Net::new(MAC, Some(1500), 1, limits).unwrap();
        net.plug(vec![tap]).unwrap();
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
pub(super) fn fake_tap() -> (FakeTap, UnixDatagram, Arc<Mutex<Host>>) {
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
fn the_tap_is_told_what_the_driver_accepted_each_time() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4);
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
    let card = |mac, mtu| Net::<FakeTap>::new(mac, mtu, 1, Limits::default());
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
    let card = |mtu| Net::<FakeTap>::new(MAC, mtu, 1, Limits::default()).unwrap();
    let offers = |mtu| card(mtu).features() & 1 << VIRTIO_NET_F_MTU != 0;
    assert!(offers(Some(1500)));
    assert!(!offers(None));
}

#[test]
fn a_card_takes_another_tap_while_it_runs() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4);
    guest.post(4, 1526);
    guest.arrive(b"first");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"first");

    let (tap, wire, host) = fake_tap();
    guest.net.plug(vec![tap]).unwrap();
    (guest.wire, guest.host) = (wire, host);
    guest.arrive(b"second");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"second");
    guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(b"out")]);
    assert_eq!(guest.sent().unwrap(), b"out");
    // The new tap learnt what the driver had agreed to.
    assert!(guest.host.lock().unwrap().offloads[0].tso4);
}

#[test]
fn a_tap_that_was_deleted_before_the_driver_came_does_not_keep_the_card_from_the_next() {
    let mut guest = Guest::new(0);
    guest.net.reset();
    guest.host.lock().unwrap().deleted = true;
    guest.net.activate(0, &mut guest.driver.queues()).unwrap();
    guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(b"lost")]);
    assert!(guest.sent().is_none() && guest.driver.used(TX).is_some());

    let (tap, wire, host) = fake_tap();
    guest.net.plug(vec![tap]).unwrap();
    (guest.wire, guest.host) = (wire, host);
    guest.post(2, 1526);
    guest.arrive(b"in");
    assert_eq!(&guest.frame().unwrap()[VNET_HEADER_LEN..], b"in");
    guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(b"out")]);
    assert_eq!(guest.sent().unwrap(), b"out");
}

#[test]
fn a_card_without_a_tap_takes_frames_and_loses_them() {
    let mut net = Net::<FakeTap>::new(MAC, None, 1, Limits::default()).unwrap();
    let mut driver = Driver::new(&QUEUE_SIZES);
    net.activate(0, &mut driver.queues()).unwrap();
    driver.add(TX, &[Buffer::Readable(&PLAIN), Buffer::Readable(b"lost")]);
    net.serve(TX, &mut driver.queues()).unwrap();
    assert!(driver.used(TX).is_some());
}
