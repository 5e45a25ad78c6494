//! virtio-net (virtio 1.3 §5.1): a network card whose other end is a tap.
//!
//! The tap may come, and be replaced, while the machine runs: container engines make the network of
//! a container that exists. Without one, what the driver sends is lost, as with no cable.
//!
//! One pair of queues. A frame passes through one buffer here, in either direction: it is looked at
//! where the guest cannot change it any more.
//!
//! ```text
//!  receive: tap ──▶ inbox ──▶ as many of the driver's buffers as it takes
//!                     └─ too few: the frame stays, the tap rests until the driver adds some
//!  transmit: chain ──▶ outbox ──▶ header checked ──▶ tap
//!                                                     └─ full: the chain stays until it is not
//! ```
//!
//! Threat: the driver, and whoever sends to the tap. The driver's headers are checked
//! (`header`), its buffers have to be large enough for one; a frame that no set of its buffers
//! can hold is dropped, so that it does not block those behind it (CVE-2020-16843 was such a
//! freeze). Work in one call is bounded in both directions, and over time by the limits that the
//! machine's description has; a direction that waits for one holds its frame, or its chains, back.

mod config;
mod header;
mod vhost;

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventFlags};
use virtio_queue::QueueT;

use self::config::Config;
pub use self::config::NetError;
use self::header::Header;
pub use self::vhost::VhostNet;
use crate::backend::tap::{Tap, VNET_HEADER_LEN};
use crate::memory::Ram;
use crate::rate_limit::RateLimiter;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::{Chain, QueueError, Queues, Writer, reader, writer};

/// virtio 1.3 §5.1.2: `receiveq1` and `transmitq1`.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Frames in one call and direction.
const BUDGET: usize = 256;

/// Header, Ethernet header, and the 64 KiB that offloads make the largest packet (virtio 1.3
/// §5.1.6.3.1).
const MAX_FRAME: usize = VNET_HEADER_LEN + 14 + 65536;

/// Where the number of merged buffers is in the header.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// The network card.
#[derive(Debug)]
pub struct Net<T> {
    tap: Option<T>,
    config: Config,
    features: u64,
    epoll: OwnedFd,
    watched: EventFlags,
    inbox: Inbox,
    outbox: Box<[u8]>,
    transmit: Transmit,
    limits: Limits,
}

/// How much may pass over time.
#[derive(Debug, Default)]
pub struct Limits {
    /// Frames to the guest.
    pub receive: RateLimiter,
    /// Frames from the guest.
    pub transmit: RateLimiter,
}

/// The frame that was read last.
#[derive(Debug)]
struct Inbox {
    buffer: Box<[u8]>,
    state: Receive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    /// Nothing is held.
    Empty,
    /// A frame of that length waits for buffers of the driver.
    Holding(usize),
    /// There is no tap, or it is gone: there will be no more frames.
    Over,
}

/// What became of a frame.
enum Sent {
    /// It is gone, or was dropped; it had so many bytes.
    Bytes(usize),
    /// The tap is full.
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transmit {
    /// The driver is listened to.
    Ready,
    /// The tap is full, and is listened to.
    Blocked,
}

impl<T: Tap> Net<T> {
    /// A card with the given hardware address, and the MTU if the driver is to be told one; both ways
    /// as fast as `limits` allow.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(mac: [u8; 6], mtu: Option<u16>, limits: Limits) -> Result<Self, NetError> {
        let config = Config::new(mac, mtu)?;
        let epoll = new_epoll(&limits).map_err(|e| NetError::Epoll(e.into()))?;
        Ok(Self {
            tap: None,
            config,
            features: 0,
            epoll,
            watched: EventFlags::empty(),
            inbox: Inbox {
                buffer: vec![0; MAX_FRAME].into_boxed_slice(),
                state: Receive::Over,
            },
            outbox: vec![0; MAX_FRAME].into_boxed_slice(),
            transmit: Transmit::Ready,
            limits,
        })
    }

    /// Connects the card to a tap, in place of the one it may have had.
    ///
    /// # Errors
    /// When the tap does not take the offloads that the driver has accepted; nothing has changed
    /// then.
    pub fn plug(&mut self, mut tap: T) -> io::Result<()> {
        tap.set_offloads(header::offloads(self.features))?;
        if let Some(old) = self.tap.replace(tap)
            && !self.watched.is_empty()
        {
            // It fails only for a descriptor that is not there.
            let _ = epoll::delete(&self.epoll, &old);
        }
        self.watched = EventFlags::empty();
        if self.inbox.state == Receive::Over {
            self.inbox.state = Receive::Empty;
        }
        self.rewatch();
        Ok(())
    }

    /// Moves frames from the tap to the driver.
    fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let received = self.receive_some(queues);
        self.rewatch();
        let notified = queues.notify(RX);
        received.and(notified)
    }

    fn receive_some(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        // What the budget leaves in the tap is still an event.
        for _ in 0..BUDGET {
            if !self.limits.receive.ready() {
                return Ok(());
            }
            let Some(len) = self.next_frame() else {
                return Ok(());
            };
            if !self.deliver(len, queues)? {
                return Ok(());
            }
            self.limits.receive.spend(len as u64);
            self.inbox.state = Receive::Empty;
        }
        Ok(())
    }

    /// The length of the frame in the inbox, read from the tap if there is none.
    fn next_frame(&mut self) -> Option<usize> {
        if let Receive::Holding(len) = self.inbox.state {
            return Some(len);
        }
        let tap = self.tap.as_mut()?;
        while self.inbox.state == Receive::Empty {
            match tap.receive(&mut self.inbox.buffer) {
                // The kernel adds a header to every frame.
                Ok(len) if len < VNET_HEADER_LEN => {}
                Ok(len) => {
                    self.inbox.state = Receive::Holding(len);
                    return Some(len);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // The interface was deleted. Reading again would fail again, forever.
                Err(_) => self.inbox.state = Receive::Over,
            }
        }
        None
    }

    /// Gives the driver a frame of `len` bytes. Without enough buffers for it, returns `false` and
    /// listens for more.
    fn deliver(&mut self, len: usize, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let merge = self.features & header::F_MRG_RXBUF != 0;
        let all = queues.rings().get(RX).map_or(0, QueueT::size);
        let mut buffers = Vec::new();
        let mut room = 0;
        while room < len {
            if buffers.len() >= if merge { usize::from(all) } else { 1 } {
                // No more buffers can come that would help: the frame is dropped, they stay.
                put_back(queues, buffers.len());
                return Ok(true);
            }
            let Some(chain) = queues.pop(RX)? else {
                // Before they are put back: the driver shall tell of what it adds after them.
                queues.listen(RX)?;
                put_back(queues, buffers.len());
                return Ok(false);
            };
            let buffer = writer(RX, queues.ram(), &chain)?;
            let size = buffer.available_bytes();
            if size < VNET_HEADER_LEN {
                return Err(QueueError::Chain {
                    index: RX,
                    what: "buffer shorter than a header",
                });
            }
            room += size;
            buffers.push((chain.head_index(), size, buffer));
        }

        let frame = self.inbox.buffer.get_mut(..len).unwrap_or_default();
        fill(frame, &mut buffers);
        let mut left = len;
        for (head, size, _) in buffers {
            let written = size.min(left);
            left -= written;
            let written = u32::try_from(written).expect("a frame has at most 64 KiB");
            queues.push(RX, head, written)?;
        }
        Ok(true)
    }

    /// Moves frames from the driver to the tap.
    fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let transmitted = self.transmit_some(queues);
        self.rewatch();
        let notified = queues.notify(TX);
        transmitted.and(notified)
    }

    fn transmit_some(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.transmit = Transmit::Ready;
        for _ in 0..BUDGET {
            if !self.limits.transmit.ready() {
                return Ok(());
            }
            let Some(chain) = queues.pop(TX)? else {
                break;
            };
            match self.send(queues.ram(), &chain)? {
                Sent::Not => {
                    self.transmit = Transmit::Blocked;
                    queues.unpop(TX);
                    return Ok(());
                }
                Sent::Bytes(len) => self.limits.transmit.spend(len as u64),
            }
            queues.push(TX, chain.head_index(), 0)?;
        }
        queues.listen(TX)
    }

    /// Sends a frame, or drops it as any network may.
    fn send(&mut self, ram: &Ram, chain: &Chain<'_>) -> Result<Sent, QueueError> {
        let broken = |what| QueueError::Chain { index: TX, what };
        let mut source = reader(TX, ram, chain)?;
        let len = source.available_bytes();
        if len < VNET_HEADER_LEN {
            return Err(broken("frame shorter than its header"));
        }
        let Some(frame) = self.outbox.get_mut(..len) else {
            // Larger than any packet: no driver sends it on purpose.
            return Ok(Sent::Bytes(len));
        };
        (source.read_exact(frame)).map_err(|_| broken("frame shorter than its descriptors"))?;
        let Some((header, data)) = frame.split_first_chunk() else {
            return Err(broken("frame shorter than its header"));
        };
        if (Header::decode(header).check(self.features, data.len())).is_err() {
            return Ok(Sent::Bytes(len));
        }
        match self.tap.as_mut().map(|tap| tap.send(frame)) {
            Some(Err(e)) if e.kind() == ErrorKind::WouldBlock => Ok(Sent::Not),
            // Not there, down or gone, or the kernel does not like the frame.
            None | Some(Ok(()) | Err(_)) => Ok(Sent::Bytes(len)),
        }
    }

    /// Brings epoll up to date: the tap is an event only for what can be done about it.
    fn rewatch(&mut self) {
        let Some(tap) = &self.tap else {
            return;
        };
        let mut wanted = match self.inbox.state {
            Receive::Empty if !self.limits.receive.is_waiting() => EventFlags::IN,
            Receive::Empty | Receive::Holding(_) | Receive::Over => EventFlags::empty(),
        };
        if self.transmit == Transmit::Blocked {
            wanted |= EventFlags::OUT;
        }
        if wanted == self.watched {
            return;
        }
        let data = epoll::EventData::new_u64(0);
        // A tap that is gone reports its error even to those who ask for nothing.
        let changed = match (self.watched.is_empty(), wanted.is_empty()) {
            (_, true) => epoll::delete(&self.epoll, tap),
            (true, false) => epoll::add(&self.epoll, tap, data, wanted),
            (false, false) => epoll::modify(&self.epoll, tap, data, wanted),
        };
        // `add` fails without memory for a watch, and is tried again with the next notification.
        if changed.is_ok() {
            self.watched = wanted;
        }
    }
}

/// An epoll instance that hears when a limit's wait is over.
fn new_epoll(limits: &Limits) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for limit in [&limits.receive, &limits.transmit] {
        if let Some(timer) = limit.timer() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, timer, data, EventFlags::IN)?;
        }
    }
    Ok(epoll)
}

fn put_back(queues: &mut Queues<'_>, buffers: usize) {
    for _ in 0..buffers {
        queues.unpop(RX);
    }
}

/// Copies a frame into the buffers, which have room for it, and their number into its header.
fn fill(frame: &mut [u8], buffers: &mut [(u16, usize, Writer<'_>)]) {
    let count = u16::try_from(buffers.len()).expect("a queue has at most 32768 buffers");
    if let Some(field) = frame.get_mut(NUM_BUFFERS) {
        field.copy_from_slice(&count.to_le_bytes());
    }
    let mut rest = &*frame;
    for (_, size, buffer) in buffers {
        let (part, tail) = rest.split_at(rest.len().min(*size));
        (buffer.write_all(part)).expect("a part is no larger than its buffer");
        rest = tail;
    }
}

impl<T: Tap> Device for Net<T> {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.features = features;
        if let Some(tap) = &mut self.tap {
            (tap.set_offloads(header::offloads(features)))
                .map_err(|e| DeviceError::Backend(format!("set a tap's offloads: {e}")))?;
        }
        self.receive(queues)?;
        Ok(self.transmit(queues)?)
    }

    fn reset(&mut self) {
        self.features = 0;
        self.transmit = Transmit::Ready;
        if self.inbox.state != Receive::Over {
            self.inbox.state = Receive::Empty;
        }
        self.rewatch();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if index == RX {
            self.receive(queues)?;
        } else if index == TX {
            self.transmit(queues)?;
        }
        Ok(())
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.receive(queues)?;
        if self.transmit == Transmit::Blocked || self.limits.transmit.is_waiting() {
            self.transmit(queues)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
