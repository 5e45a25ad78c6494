//! The device between a fake driver and the host's sockets.

mod connections;
mod flow;
mod hostile;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, poll};

use super::credit::BUF_ALLOC;
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::table::MAX_CONNECTIONS;
use super::*;
use crate::virtio::queue::testing::{Buffer, Driver};

const GUEST_CID: u64 = 3;
const GUEST_PORT: u32 = 5000;
const HOST_PORT: u32 = 1024;
/// What Linux posts: a page less some bookkeeping.
const RX_BUFFER: u32 = 3776;

struct Switchboard(mpsc::Sender<(u32, UnixStream)>);

impl Dialler for Switchboard {
    fn dialled(&mut self, port: u32, socket: OwnedFd) -> io::Result<()> {
        if port == 404 {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        self.0.send((port, socket.into())).unwrap();
        Ok(())
    }
}

/// A guest, its device and the event loop between them.
struct Guest {
    driver: Driver,
    vsock: Vsock,
    dialled: mpsc::Receiver<(u32, UnixStream)>,
}

impl Guest {
    fn new() -> Self {
        let (sender, dialled) = mpsc::channel();
        let cid = u32::try_from(GUEST_CID).unwrap();
        let mut guest = Self::starved(Vsock::new(cid, Box::new(Switchboard(sender))).unwrap());
        guest.dialled = dialled;
        guest.post(128);
        guest
    }

    fn starved(mut vsock: Vsock) -> Self {
        let mut driver = Driver::new(&QUEUE_SIZES);
        vsock.activate(0, &mut driver.queues()).unwrap();
        Self {
            driver,
            vsock,
            dialled: mpsc::channel().1,
        }
    }

    /// Posts buffers for packets, and notifies if the device wants it.
    fn post(&mut self, buffers: usize) {
        let mut wanted = false;
        for _ in 0..buffers {
            self.driver.add(RX, &[Buffer::Writable(RX_BUFFER)]);
            wanted |= self.driver.device_listens(RX);
        }
        if wanted {
            self.vsock.serve(RX, &mut self.driver.queues()).unwrap();
        }
    }

    /// Makes a packet available without notifying.
    fn send_unserved(&mut self, header: Header) {
        self.driver.add(TX, &[Buffer::Readable(&header.encode())]);
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        let header = Header { len, ..header }.encode();
        let mut chain = vec![Buffer::Readable(&header)];
        if !data.is_empty() {
            chain.push(Buffer::Readable(data));
        }
        self.driver.add(TX, &chain);
        self.vsock.serve(TX, &mut self.driver.queues()).unwrap();
        while self.driver.used(TX).is_some() {}
    }

    /// Lets the event loop run until it would sleep; panics if it never does.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut idle = true;
            if readable(&self.vsock) {
                let mut queues = self.driver.queues();
                self.vsock.serve_backend(&mut queues).unwrap();
                idle = false;
            }
            for queue in [RX, TX] {
                if self.driver.kicked(queue) {
                    let mut queues = self.driver.queues();
                    self.vsock.serve(queue, &mut queues).unwrap();
                    idle = false;
                }
            }
            if idle {
                return;
            }
        }
        panic!("the event loop spins");
    }

    /// The next packet from the device; its buffer is posted again.
    fn packet(&mut self) -> Option<(Header, Vec<u8>)> {
        self.settle();
        let used = self.driver.used(RX)?;
        let (header, data) = used.written.split_first_chunk().unwrap();
        let header = Header::decode(header);
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.dst_cid, GUEST_CID);
        assert_eq!(header.len as usize, data.len());
        self.post(1);
        Some((header, data.to_vec()))
    }

    /// The next packet, which must be this one.
    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self
            .packet()
            .unwrap_or_else(|| panic!("no packet, not {op:?}"));
        assert_eq!(header.op(), Some(op));
        header
    }

    fn expect_nothing(&mut self) {
        let packet = self.packet();
        assert!(packet.is_none(), "{packet:?}");
    }

    /// All data up to the first packet that has none, which is put aside.
    fn data(&mut self) -> (Vec<u8>, Option<Header>) {
        let mut all = Vec::new();
        while let Some((header, data)) = self.packet() {
            if header.op() != Some(Op::ReadWrite) {
                return (all, Some(header));
            }
            all.extend(data);
        }
        (all, None)
    }

    /// Connects to the host, which answers; returns the host's end.
    fn connect(&mut self) -> UnixStream {
        self.send(from_guest(Op::Request), &[]);
        self.expect(Op::Response);
        let (port, socket) = self.dialled.try_recv().unwrap();
        assert_eq!(port, HOST_PORT);
        socket
    }
}

fn readable(vsock: &Vsock) -> bool {
    let backend = vsock.backend().unwrap();
    let mut fds = [PollFd::new(&backend, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() > 0
}

fn from_guest(op: Op) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: HOST_PORT,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

fn shutdown_of(flags: u32) -> Header {
    Header {
        flags,
        ..from_guest(Op::Shutdown)
    }
}

/// Bytes that show when one is missing or out of place.
fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

fn read_all(socket: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match socket.read_to_end(&mut all) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
    }
    all
}

fn at_end_of_file(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(0))
}
