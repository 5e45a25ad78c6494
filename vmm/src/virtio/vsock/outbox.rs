//! What goes to the guest next: resets for connections that do not exist, then each connection in
//! turn.
//!
//! Data is read from a socket in one go, as much as the guest has credit for, and cut into packets
//! of whatever size the driver's buffers have. When the buffers run out, the rest stays here; it is
//! one connection's, and nobody could be served before it anyway.

use std::collections::VecDeque;
use std::ops::Range;

use super::connection::{Key, Outgoing};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::table::{Connections, Id};

/// Most bytes one connection sends in its turn.
const TURN_BYTES: usize = 64 * 1024;

/// Most resets kept while the guest takes no packets. The guest that caused more has no answer to
/// some: its own connects time out.
const MAX_RESETS: usize = 256;

/// Everything that waits for the guest's buffers, except what connections know themselves.
pub(super) struct Outbox {
    guest_cid: u64,
    resets: VecDeque<Header>,
    buffer: Box<[u8]>,
    staged: Option<Staged>,
}

/// Bytes of `buffer` that one connection has read and not sent.
struct Staged {
    id: Id,
    key: Key,
    bytes: Range<usize>,
}

/// A packet for the guest.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    pub(super) header: Header,
    pub(super) data: &'a [u8],
}

impl Outbox {
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            resets: VecDeque::new(),
            buffer: vec![0; TURN_BYTES].into_boxed_slice(),
            staged: None,
        }
    }

    pub(super) fn clear(&mut self) {
        self.resets.clear();
        self.staged = None;
    }

    /// Answers `header` with a reset, unless it is one.
    pub(super) fn reset(&mut self, header: &Header) {
        if header.op() != Some(Op::Reset) && self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                // The driver finds the socket by it.
                kind: header.kind,
                op: Op::Reset as u16,
                ..Header::default()
            });
        }
    }

    /// Whether [`Outbox::next`] may have something.
    pub(super) fn is_pending(&self, connections: &Connections) -> bool {
        !self.resets.is_empty() || self.staged.is_some() || connections.has_outgoing()
    }

    /// The next packet, with at most `room` bytes of data. `room` must not be zero.
    pub(super) fn next(
        &mut self,
        connections: &mut Connections,
        room: usize,
    ) -> Option<Packet<'_>> {
        if let Some(header) = self.resets.pop_front() {
            return Some(Packet { header, data: &[] });
        }
        if self.staged_is_void(connections) {
            self.staged = None;
        }
        if self.staged.is_none() {
            match connections.next(&mut self.buffer)? {
                (id, key, Outgoing::Control(op, flags)) => {
                    let mut header = self.header(key, op, flags);
                    if let Some(connection) = connections.get_mut(id) {
                        connection.announce(&mut header);
                    }
                    return Some(Packet { header, data: &[] });
                }
                (id, key, Outgoing::Data(count)) => {
                    self.staged = Some(Staged {
                        id,
                        key,
                        bytes: 0..count,
                    });
                }
            }
        }
        self.cut(connections, room)
    }

    /// Takes up to `room` bytes of what is staged.
    fn cut(&mut self, connections: &mut Connections, room: usize) -> Option<Packet<'_>> {
        let Staged { id, key, bytes } = self.staged.take()?;
        let end = bytes.end.min(bytes.start.saturating_add(room));
        if end < bytes.end {
            let bytes = end..bytes.end;
            self.staged = Some(Staged { id, key, bytes });
        }
        let mut header = self.header(key, Op::ReadWrite, 0);
        if let Some(connection) = connections.get_mut(id) {
            connection.announce(&mut header);
        }
        let data = self.buffer.get(bytes.start..end)?;
        header.len = u32::try_from(data.len()).expect("at most TURN_BYTES bytes are staged");
        Some(Packet { header, data })
    }

    fn staged_is_void(&self, connections: &mut Connections) -> bool {
        self.staged.as_ref().is_some_and(|staged| {
            !(connections.get_mut(staged.id)).is_some_and(|connection| connection.takes_data())
        })
    }

    fn header(&self, key: Key, op: Op, flags: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            ..Header::default()
        }
    }
}
