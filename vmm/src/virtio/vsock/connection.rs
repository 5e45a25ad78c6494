//! One connection between a port of the guest and a stream socket of the host.
//!
//! ```text
//!  guest's REQUEST, dialler takes it ─────────────▶ Established ──both ends told──▶ Closed
//!  host's connect ─▶ Requested ──guest's RESPONSE──────▲   │                          │
//!                        └──────RST──▶ forgotten ◀──RST, or SHUTDOWN of both ways─────┘
//! ```
//! What the guest is owed is a set of flags, never a queue of packets: a guest that takes none
//! cannot make it grow.

use std::os::fd::OwnedFd;

use super::credit::Credit;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::backend::stream::{Received, Stream};

/// The two ports that name a connection; there is one guest and one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    state: State,
    credit: Credit,
    owed: Owed,
}

#[derive(Debug)]
enum State {
    /// The host asked; the guest has not answered.
    Requested(OwnedFd),
    /// Bytes flow.
    Established {
        stream: Stream,
        /// `SHUTDOWN_*` the guest sent.
        guest_ended: u32,
        /// `SHUTDOWN_*` the guest was sent.
        told: u32,
    },
    /// The host's side is gone, and the guest was told; its reset frees the ports.
    Closed,
}

/// Control packets to send. At most one of each kind is ever due.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: CreditRequest,
}

/// Whether the guest was asked for credit since it last had any to give.
#[derive(Debug, Default, PartialEq, Eq)]
enum CreditRequest {
    #[default]
    NotSent,
    Sent,
}

/// What becomes of a connection after a packet from the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays.
    Lives,
    /// It is over, and the guest is told by a reset.
    Reset,
    /// It is over, and the guest knows.
    Gone,
}

/// What to send to the guest next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A packet without data.
    Control(Op, u32),
    /// That many bytes, now in the buffer; they are the guest's already (credit was taken).
    Data(usize),
}

impl Connection {
    /// A connection the host asks for; the guest is owed the request.
    pub(super) fn requested(key: Key, socket: OwnedFd) -> Self {
        Self {
            key,
            state: State::Requested(socket),
            credit: Credit::default(),
            owed: Owed {
                request: true,
                ..Owed::default()
            },
        }
    }

    /// A connection the guest asked for with `request`; it is owed the response.
    pub(super) fn accepted(key: Key, socket: OwnedFd, request: &Header) -> Self {
        let mut credit = Credit::default();
        credit.learn(request);
        Self {
            key,
            state: established(socket),
            credit,
            owed: Owed {
                response: true,
                ..Owed::default()
            },
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Whether the guest has not heard of the connection yet.
    pub(super) fn is_news(&self) -> bool {
        self.owed.request
    }

    /// Whether only the guest's reset is missing.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The socket to watch, once there is something to watch it for.
    pub(super) fn stream(&self) -> Option<&Stream> {
        match &self.state {
            State::Established { stream, .. } => Some(stream),
            State::Requested(_) | State::Closed => None,
        }
    }

    /// Takes a packet of this connection. `data` is what follows the header, `header.len` bytes.
    pub(super) fn receive(&mut self, header: &Header, data: &[u8]) -> Fate {
        self.credit.learn(header);
        if self.credit.available() > 0 {
            self.owed.credit_request = CreditRequest::NotSent;
        }
        match (&mut self.state, header.op()) {
            (_, Some(Op::Reset)) => Fate::Gone,
            (State::Requested(_), Some(Op::Response)) => {
                if let State::Requested(socket) = std::mem::replace(&mut self.state, State::Closed)
                {
                    self.state = established(socket);
                }
                Fate::Lives
            }
            (State::Established { .. }, Some(Op::ReadWrite)) => self.receive_data(data),
            (
                State::Established {
                    stream,
                    guest_ended,
                    ..
                },
                Some(Op::Shutdown),
            ) => {
                *guest_ended |= header.flags & SHUTDOWN_BOTH;
                let ended = *guest_ended;
                if ended & SHUTDOWN_SEND != 0 {
                    stream.finish();
                }
                if ended & SHUTDOWN_RECEIVE != 0 {
                    stream.refuse();
                }
                // The reset confirms the disconnect (virtio 1.3 §5.10.6.5).
                if ended == SHUTDOWN_BOTH {
                    Fate::Reset
                } else {
                    Fate::Lives
                }
            }
            (State::Established { .. }, Some(Op::CreditUpdate)) => Fate::Lives,
            (State::Established { .. }, Some(Op::CreditRequest)) => {
                self.owed.credit_update = true;
                Fate::Lives
            }
            (State::Closed, Some(Op::Shutdown))
                if header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH =>
            {
                Fate::Reset
            }
            // The guest sent these before it read that the connection is over.
            (
                State::Closed,
                Some(Op::ReadWrite | Op::CreditUpdate | Op::CreditRequest | Op::Shutdown),
            ) => Fate::Lives,
            _ => Fate::Reset,
        }
    }

    /// Takes an epoll event of the socket.
    pub(super) fn event(&mut self, flags: rustix::event::epoll::EventFlags) {
        if let State::Established { stream, .. } = &mut self.state {
            let gone = stream.event(flags);
            self.forwarded(gone);
        }
    }

    /// Whether [`Connection::next`] may have something.
    pub(super) fn has_outgoing(&self) -> bool {
        let readable = match &self.state {
            State::Requested(_) => false,
            State::Established { stream, .. } => {
                stream.readable()
                    && (self.credit.available() > 0
                        || self.owed.credit_request == CreditRequest::NotSent)
            }
            State::Closed => return false,
        };
        self.owed.request
            || self.owed.response
            || self.owed.credit_update
            || readable
            || self.shutdown_due() != 0
    }

    /// What the guest gets next; data is read into `buffer`, which must not be empty.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<Outgoing> {
        if std::mem::take(&mut self.owed.request) {
            return Some(Outgoing::Control(Op::Request, 0));
        }
        if std::mem::take(&mut self.owed.response) {
            return Some(Outgoing::Control(Op::Response, 0));
        }
        let State::Established { stream, told, .. } = &mut self.state else {
            return None;
        };
        if std::mem::take(&mut self.owed.credit_update) {
            return Some(Outgoing::Control(Op::CreditUpdate, 0));
        }

        if stream.readable() {
            let room = usize::try_from(self.credit.available()).unwrap_or(usize::MAX);
            let size = buffer.len().min(room);
            if size == 0 {
                if self.owed.credit_request == CreditRequest::NotSent {
                    self.owed.credit_request = CreditRequest::Sent;
                    return Some(Outgoing::Control(Op::CreditRequest, 0));
                }
            } else if let Some(buffer) = buffer.get_mut(..size)
                && let Received::Data(count) = stream.receive(buffer)
            {
                let counted = u32::try_from(count).expect("at most the credit, a u32, was read");
                self.credit.send(counted);
                return Some(Outgoing::Data(count));
            }
        }

        // Only now: what the host sent before its end has been passed on.
        let ended = ended(stream);
        if ended & !*told == 0 {
            return None;
        }
        *told |= ended;
        if *told == SHUTDOWN_BOTH {
            self.state = State::Closed;
        }
        Some(Outgoing::Control(Op::Shutdown, ended))
    }

    /// Whether data read from the host may still be sent: the guest has not declined it.
    pub(super) fn takes_data(&self) -> bool {
        matches!(&self.state, State::Established { guest_ended, .. }
            if guest_ended & SHUTDOWN_RECEIVE == 0)
    }

    /// Completes the header of a packet of this connection.
    pub(super) fn announce(&mut self, header: &mut Header) {
        self.credit.announce(header);
    }

    /// What is left when the guest's side is over: a socket that still owes the host some bytes.
    pub(super) fn into_unsent(self) -> Option<Stream> {
        match self.state {
            State::Established { mut stream, .. } => {
                stream.refuse();
                stream.finish();
                (!stream.outbound_ended()).then_some(stream)
            }
            State::Requested(_) | State::Closed => None,
        }
    }

    fn receive_data(&mut self, data: &[u8]) -> Fate {
        let State::Established {
            stream,
            guest_ended,
            ..
        } = &mut self.state
        else {
            return Fate::Reset;
        };
        let counted = u32::try_from(data.len()).map(|len| self.credit.receive(len));
        if !matches!(counted, Ok(Ok(()))) || *guest_ended & SHUTDOWN_SEND != 0 {
            return Fate::Reset;
        }
        let gone = stream.send(data);
        self.forwarded(gone);
        Fate::Lives
    }

    fn forwarded(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).expect("no more is forwarded than the guest's credit");
        self.credit.forward(bytes);
        if self.credit.update_due() {
            self.owed.credit_update = true;
        }
    }

    /// The `SHUTDOWN_*` flags that are true by now and that the guest was not told.
    fn shutdown_due(&self) -> u32 {
        match &self.state {
            State::Established { stream, told, .. } => ended(stream) & !told,
            State::Requested(_) | State::Closed => 0,
        }
    }
}

fn established(socket: OwnedFd) -> State {
    State::Established {
        stream: Stream::new(socket),
        guest_ended: 0,
        told: 0,
    }
}

/// The `SHUTDOWN_*` flags that describe the host's side.
fn ended(stream: &Stream) -> u32 {
    let mut flags = 0;
    if stream.inbound_ended() {
        flags |= SHUTDOWN_SEND;
    }
    if stream.outbound_ended() {
        flags |= SHUTDOWN_RECEIVE;
    }
    flags
}
