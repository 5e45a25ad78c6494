//! Frames from the host.

use std::io::{ErrorKind, Write};
use std::ops::Range;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;

use super::{BUDGET, Pair, RX};
use crate::backend::tap::{Tap, VNET_HEADER_LEN};
use crate::virtio::queue::{QueueError, Queues, Writer, writer};

/// Where the number of merged buffers is in the header.
pub(in crate::virtio::net) const NUM_BUFFERS: Range<usize> = 10..12;

/// The frame that was read last.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) buffer: Box<[u8]>,
    pub(super) state: Receive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing is held.
    Empty,
    /// A frame of that length waits for buffers of the driver.
    Holding(usize),
    /// There is no tap, or it is gone: there will be no more frames.
    Over,
}

impl<T: Tap> Pair<T> {
    /// Moves frames from the tap to the driver.
    pub(super) fn receive(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
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

    /// Gives the driver a frame of `len` bytes, in one buffer or, with VIRTIO_NET_F_MRG_RXBUF, in as many as it
    /// needs (virtio 1.3 §5.1.6.3.2, §5.1.6.4.1). Without enough buffers for it, returns `false` and
    /// listens for more.
    fn deliver(&mut self, len: usize, queues: &mut Queues<'_>) -> Result<bool, QueueError> {
        let merge = self.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let all = queues.rings().get(RX).map_or(0, QueueT::size);
        let mut buffers = Vec::new();
        let mut room = 0;
        while room < len {
            if buffers.len() >= if merge { usize::from(all) } else { 1 } {
                // No more buffers can come that would help: the frame is dropped, they stay.
                put_back(queues, buffers.len());
                self.traffic.errors += 1;
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

        self.traffic.to_guest += (len - VNET_HEADER_LEN) as u64;
        let frame = self.inbox.buffer.get_mut(..len).unwrap_or_default();
        fill(frame, &mut buffers);
        let mut left = len;
        let used = buffers.iter().map(|(head, size, _)| {
            let written = left.min(*size);
            left -= written;
            let written = u32::try_from(written).expect("a frame has at most 64 KiB");
            (*head, written)
        });
        // A driver that finds the first of them expects the others (§5.1.6.4.1).
        queues.push_all(RX, used)?;
        Ok(true)
    }
}

fn put_back(queues: &mut Queues<'_>, buffers: usize) {
    for _ in 0..buffers {
        queues.unpop(RX);
    }
}

/// Copies a frame into the buffers, which have room for it, and their number into its header (§5.1.6.4.1).
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
