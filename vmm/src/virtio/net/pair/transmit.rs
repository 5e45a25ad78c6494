//! Frames from the driver (virtio 1.3 §5.1.6.2): a header and a frame in each chain, which the device reads.

use std::io::{ErrorKind, Read};

use super::{BUDGET, Pair, TX};
use crate::backend::tap::{Tap, VNET_HEADER_LEN};
use crate::memory::Ram;
use crate::virtio::net::header::Header;
use crate::virtio::queue::{Chain, QueueError, Queues, reader};

/// What became of a frame.
enum Sent {
    /// It is gone, or was dropped; it had so many bytes.
    Bytes(usize),
    /// The tap is full.
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transmit {
    /// The driver is listened to.
    Ready,
    /// The tap is full, and is listened to.
    Blocked,
}

impl<T: Tap> Pair<T> {
    /// Moves frames from the driver to the tap.
    pub(super) fn transmit(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
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
            self.traffic.errors += 1;
            return Ok(Sent::Bytes(len));
        };
        (source.read_exact(frame)).map_err(|_| broken("frame shorter than its descriptors"))?;
        let Some((header, data)) = frame.split_first_chunk() else {
            return Err(broken("frame shorter than its header"));
        };
        let bytes = data.len() as u64;
        if (Header::decode(header).check(self.features, data.len())).is_err() {
            self.traffic.errors += 1;
            return Ok(Sent::Bytes(len));
        }
        match self.tap.as_mut().map(|tap| tap.send(frame)) {
            Some(Err(e)) if e.kind() == ErrorKind::WouldBlock => return Ok(Sent::Not),
            Some(Ok(())) => self.traffic.from_guest += bytes,
            // Not there, down or gone, or the kernel does not like the frame.
            None | Some(Err(_)) => self.traffic.errors += 1,
        }
        Ok(Sent::Bytes(len))
    }
}
