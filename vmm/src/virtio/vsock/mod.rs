//! virtio-vsock (virtio 1.3 §5.10): stream sockets between the guest and its host.
//!
//! Each connection of the guest to the host (CID 2) becomes a socket pair, one end of which goes to
//! the [`Dialler`]; each socket given to [`Vsock::connect`] becomes a connection to a port of the
//! guest. No path, no name and no address of the host is ever looked up here.
//!
//! ```text
//!  guest ── tx queue ──▶ receive ──▶ table ──▶ connection ──▶ stream ──▶ socket
//!  guest ◀── rx queue ── outbox ◀─── table ◀── connection ◀── stream ◀── socket
//! ```
//! `packet` and `credit` are pure; `connection` decides what becomes of one connection; `table` has
//! all of them and the epoll instance; `outbox` chooses what is sent next.
//!
//! Threat: the driver. It can open connections, send without credit, take no packets, name other
//! CIDs and post malformed buffers. All that it can make grow is bounded: connections
//! (`table::MAX_CONNECTIONS`), bytes of each (`credit::BUF_ALLOC`), resets; what a connection is
//! owed is a set of flags. Work per call is bounded by the queues' sizes. Every header is read once,
//! into our memory, before it is looked at (CVE-2019-18960 was a length that was not checked against
//! the descriptor's).

mod config;
mod connection;
mod credit;
mod outbox;
mod packet;
mod table;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use self::connection::{Connection, Fate, Key};
use self::outbox::Outbox;
use self::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use self::table::Connections;
use crate::memory::Ram;
use crate::virtio::device::{Device, DeviceError, DeviceId, Traffic};
use crate::virtio::queue::{Chain, QueueError, Queues, reader, writer};

/// virtio 1.3 §5.10.2: packets to the guest.
const RX: usize = 0;
/// virtio 1.3 §5.10.2: packets from the guest.
const TX: usize = 1;
/// Of `rx`, `tx` and `event`. Nothing is sent through the last: its one event tells of a migration.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Packets to the guest in one call; what is left wakes the device again, after everybody else.
const RX_BUDGET: usize = 256;

/// Whoever takes the guest's connections to its host.
pub trait Dialler: Send {
    /// The guest connected to `port`; `socket` is the host's end, non-blocking and closed on exec.
    ///
    /// # Errors
    /// Whatever the reason, the guest's connect is reset.
    fn dialled(&mut self, port: u32, socket: OwnedFd) -> io::Result<()>;
}

/// Why there is no socket device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// virtio 1.3 §5.10.4: 0, 1, 2 and 0xffffffff have other meanings.
    #[error("context identifier {0} is reserved")]
    ReservedCid(u32),
    /// The host has no descriptor to spare.
    #[error("create an epoll instance for vsock connections")]
    Epoll(#[source] io::Error),
}

/// The socket device.
pub struct Vsock {
    guest_cid: u64,
    dialler: Box<dyn Dialler>,
    connections: Connections,
    outbox: Outbox,
    /// Data of the packet that is being received.
    data: Vec<u8>,
    /// Connections that were refused are its errors.
    traffic: Traffic,
}

impl Vsock {
    /// A device for the guest with the given context identifier.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(guest_cid: u32, dialler: Box<dyn Dialler>) -> Result<Self, VsockError> {
        if matches!(guest_cid, 0..=2 | u32::MAX) {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        let guest_cid = u64::from(guest_cid);
        Ok(Self {
            guest_cid,
            dialler,
            connections: Connections::new().map_err(VsockError::Epoll)?,
            outbox: Outbox::new(guest_cid),
            data: Vec::new(),
            traffic: Traffic::default(),
        })
    }

    /// Splices a connected stream socket to the guest's `port`, as soon as the guest accepts.
    ///
    /// A guest that refuses, resets the device or has too many connections closes the socket.
    /// Before the driver is ready the request waits for it; a guest that never answers is the
    /// caller's to time out.
    pub fn connect(&mut self, port: u32, socket: OwnedFd) {
        let key = Key {
            guest: port,
            host: self.connections.free_host_port(port),
        };
        // Without room the socket is closed here.
        let _ = self.connections.insert(Connection::requested(key, socket));
        self.connections.wake();
    }

    /// Takes the packets the guest has sent.
    fn receive_all(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let ram = queues.ram();
        queues.drain(TX, |chain| {
            self.receive(ram, &chain)?;
            Ok(0)
        })
    }

    fn receive(&mut self, ram: &Ram, chain: &Chain<'_>) -> Result<(), QueueError> {
        let broken = |what| QueueError::Chain { index: TX, what };
        let mut packet = reader(TX, ram, chain)?;
        let mut header = [0; HEADER_LEN];
        packet
            .read_exact(&mut header)
            .map_err(|_| broken("packet shorter than its header"))?;
        let header = Header::decode(&header);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > packet.available_bytes() {
            return Err(broken("packet shorter than its header says"));
        }

        if header.src_cid != self.guest_cid {
            // Nobody to answer.
            return Ok(());
        }
        // §5.10.6.4.2: the answer to a type that is not known is a reset.
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.outbox.reset(&header);
            return Ok(());
        }
        // More than any credit is not even read: the connection resets because of it.
        let oversized = header.len > credit::BUF_ALLOC;
        self.data.clear();
        if oversized {
            self.outbox.reset(&header);
            if let Some(id) = self.connections.find(key(&header)) {
                self.connections.remove(id);
            }
            return Ok(());
        }
        self.data.resize(len, 0);
        packet
            .read_exact(&mut self.data)
            .map_err(|_| broken("packet shorter than its header says"))?;
        self.traffic.from_guest += u64::from(header.len);
        self.dispatch(&header);
        Ok(())
    }

    fn dispatch(&mut self, header: &Header) {
        let existing = self.connections.find(key(header));
        match existing {
            // The guest forgot the connection when it was told that it is over.
            Some(id)
                if header.op() == Some(Op::Request)
                    && (self.connections.get_mut(id)).is_some_and(|c| c.is_closed()) =>
            {
                self.connections.remove(id);
                self.accept(header);
            }
            Some(id) => {
                if self.connections.receive(id, header, &self.data) == Fate::Reset {
                    self.outbox.reset(header);
                }
            }
            None if header.op() == Some(Op::Request) => self.accept(header),
            None => self.outbox.reset(header),
        }
    }

    /// Takes a connection from the guest, if the dialler does. §5.10.6.5: without room for it, or a
    /// listener, the answer is a reset.
    fn accept(&mut self, header: &Header) {
        if self.connections.is_full() || self.dial(header).is_err() {
            self.traffic.errors += 1;
            self.outbox.reset(header);
        }
    }

    fn dial(&mut self, header: &Header) -> io::Result<()> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        self.dialler.dialled(header.dst_port, theirs)?;
        let connection = Connection::accepted(key(header), ours, header);
        self.connections
            .insert(connection)
            .map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }

    /// Sends what waits for the guest, as far as its buffers reach.
    fn send(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let sent = self.send_some(queues);
        let notified = queues.notify(RX);
        sent.and(notified)
    }

    fn send_some(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        for _ in 0..RX_BUDGET {
            if !self.outbox.is_pending(&self.connections) {
                return Ok(());
            }
            let Some(chain) = queues.pop(RX)? else {
                return queues.listen(RX);
            };
            let mut buffer = writer(RX, queues.ram(), &chain)?;
            let room = buffer
                .available_bytes()
                .checked_sub(HEADER_LEN)
                .filter(|&room| room > 0)
                .ok_or(QueueError::Chain {
                    index: RX,
                    what: "buffer without room for a packet",
                })?;
            let Some(packet) = self.outbox.next(&mut self.connections, room) else {
                queues.unpop(RX);
                return Ok(());
            };
            buffer
                .write_all(&packet.header.encode())
                .and_then(|()| buffer.write_all(packet.data))
                .expect("the buffer has room for the header and `room` bytes");
            self.traffic.to_guest += packet.data.len() as u64;
            let written = u32::try_from(HEADER_LEN + packet.data.len())
                .expect("a packet has at most 64 KiB of data");
            queues.push(RX, chain.head_index(), written)?;
        }
        if self.outbox.is_pending(&self.connections) {
            self.connections.wake();
        }
        Ok(())
    }
}

/// The ports of a packet from the guest.
fn key(header: &Header) -> Key {
    Key {
        guest: header.src_port,
        host: header.dst_port,
    }
}

impl Device for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Socket
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: `VIRTIO_VSOCK_F_STREAM` is what a device without features has (virtio 1.3 §5.10.3).
    /// `VIRTIO_VSOCK_F_NO_IMPLIED_STREAM` (§5.10.3.2) is for those that may have none: here nothing else is.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        config::read(self.guest_cid, offset, data);
    }

    fn activate(&mut self, _features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(self.send(queues)?)
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.outbox.clear();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if index == TX {
            let received = self.receive_all(queues);
            self.send(queues)?;
            received?;
        } else if index == RX {
            self.send(queues)?;
        }
        Ok(())
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connections.as_fd())
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.connections.poll();
        Ok(self.send(queues)?)
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

#[cfg(test)]
mod tests;
