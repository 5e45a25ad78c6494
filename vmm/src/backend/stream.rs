//! A connected stream socket of the host, written to and read from without ever waiting.
//!
//! ```text
//!            Outbound: Open ──finish──▶ Finishing ──backlog written──▶ Ended
//!  writer ─▶ backlog ─▶ socket              └───────────peer gone───────▲
//!            Inbound:  Idle ◀──drained / event──▶ Ready ──end of file──▶ Ended
//!  reader ◀─────────── socket
//! ```
//! The two directions end independently. [`Stream::event`] takes what an edge-triggered epoll
//! reports, so a socket nobody can serve costs nothing: no edge, no wake-up.
//!
//! Every call is `MSG_DONTWAIT`: the descriptor may share its mode with another process.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// A backlog that grew beyond this is given back to the allocator once it is empty.
const KEEP_CAPACITY: usize = 4096;

/// One stream socket and the bytes it has not taken yet.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    backlog: VecDeque<u8>,
    outbound: Outbound,
    inbound: Inbound,
    /// The peer will send no more, but what it sent may still be unread (`EPOLLRDHUP`).
    closing: bool,
    /// Both directions are over, but what the peer sent may still be unread (`EPOLLHUP`).
    hung_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outbound {
    Open,
    Finishing,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    Idle,
    Ready,
    Ended,
}

/// What [`Stream::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// That many bytes, at least one.
    Data(usize),
    /// Nothing now; [`Stream::event`] says when to ask again.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Stream {
    /// Wraps a connected stream socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            backlog: VecDeque::new(),
            outbound: Outbound::Open,
            inbound: Inbound::Idle,
            closing: false,
            hung_up: false,
        }
    }

    /// What to be told of, beside the hang-ups that epoll always reports.
    #[must_use]
    pub fn interest(&self) -> EventFlags {
        let mut interest = EventFlags::ET | EventFlags::IN | EventFlags::RDHUP;
        // Only while there is something to write: the peer's every read would be an event.
        if !self.backlog.is_empty() {
            interest |= EventFlags::OUT;
        }
        interest
    }

    /// Takes note of an epoll event; returns how many bytes of the backlog were written or lost.
    pub fn event(&mut self, flags: EventFlags) -> usize {
        self.hung_up |= flags.intersects(EventFlags::HUP | EventFlags::ERR);
        self.closing |= self.hung_up || flags.contains(EventFlags::RDHUP);
        if self.inbound == Inbound::Idle && (self.closing || flags.contains(EventFlags::IN)) {
            self.inbound = Inbound::Ready;
        }
        self.flush()
    }

    /// Writes `bytes` after the backlog, and keeps what the socket does not take; returns how many
    /// bytes left for the socket. After the end they all do: they are dropped.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut gone = self.flush();
        if self.outbound == Outbound::Ended {
            return gone + bytes.len();
        }
        let taken = if self.backlog.is_empty() {
            self.send_now(bytes)
        } else {
            Some(0)
        };
        match taken {
            Some(taken) => {
                gone += taken;
                self.backlog.extend(bytes.get(taken..).unwrap_or_default());
                gone
            }
            None => gone + bytes.len(),
        }
    }

    /// Nothing more will be sent: the peer reads end of file after the backlog.
    pub fn finish(&mut self) {
        if self.outbound == Outbound::Open {
            self.outbound = Outbound::Finishing;
            self.flush();
        }
    }

    /// Nothing more will be read: the peer's writes fail.
    pub fn refuse(&mut self) {
        if self.inbound != Inbound::Ended {
            self.inbound = Inbound::Ended;
            // It fails only when the peer is gone already.
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
    }

    /// Reads into `buffer`, which must not be empty.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        debug_assert!(!buffer.is_empty(), "an empty read looks like the end");
        match self.inbound {
            Inbound::Idle => return Received::Nothing,
            Inbound::Ready => {}
            Inbound::Ended => return Received::End,
        }
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => break,
                Ok((_, count)) => {
                    // A short read has emptied the socket, unless its end is left to be read: that
                    // edge is gone (epoll(7), "Do I need to continuously read/write").
                    if count < buffer.len() && !self.closing {
                        self.inbound = Inbound::Idle;
                    }
                    return Received::Data(count);
                }
                Err(Errno::AGAIN) => {
                    self.inbound = Inbound::Idle;
                    return Received::Nothing;
                }
                Err(Errno::INTR) => {}
                // Reset by the peer: over, and there is nobody left to write to.
                Err(_) => {
                    self.abandon();
                    break;
                }
            }
        }
        self.inbound = Inbound::Ended;
        Received::End
    }

    /// Whether [`Stream::receive`] is worth a call.
    #[must_use]
    pub fn readable(&self) -> bool {
        self.inbound == Inbound::Ready
    }

    /// Whether the peer's last byte was read, or its bytes are refused.
    #[must_use]
    pub fn inbound_ended(&self) -> bool {
        self.inbound == Inbound::Ended
    }

    /// Whether the peer takes no more bytes, or was told that there are none.
    #[must_use]
    pub fn outbound_ended(&self) -> bool {
        self.outbound == Outbound::Ended || (self.hung_up && self.inbound == Inbound::Ended)
    }

    /// Bytes that were sent but not taken by the socket.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    fn flush(&mut self) -> usize {
        let mut gone = 0;
        while !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            let taken = self.send_now(backlog.as_slices().0);
            let Some(taken) = taken else {
                return gone + backlog.len();
            };
            self.backlog = backlog;
            self.backlog.drain(..taken);
            gone += taken;
            if taken == 0 {
                return gone;
            }
        }
        if self.backlog.capacity() > KEEP_CAPACITY {
            self.backlog = VecDeque::new();
        }
        if self.outbound == Outbound::Finishing {
            self.outbound = Outbound::Ended;
            // It fails only when the peer is gone already.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        gone
    }

    /// How many of `bytes` the socket took; `None` once nobody takes any.
    fn send_now(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            match send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => taken += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.abandon();
                    return None;
                }
            }
        }
        Some(taken)
    }

    fn abandon(&mut self) {
        self.outbound = Outbound::Ended;
        self.backlog = VecDeque::new();
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours.into()), theirs)
    }

    /// Sends zeroes until the socket takes no more; returns how many it took.
    fn fill(stream: &mut Stream) -> usize {
        let mut taken = 0;
        while stream.backlog() == 0 {
            taken += stream.send(&[0; 4096]);
        }
        taken
    }

    #[test]
    fn bytes_the_socket_refuses_wait_and_arrive_in_order() {
        let (mut stream, mut peer) = pair();
        let taken = fill(&mut stream);
        let waiting = stream.backlog();
        assert_eq!(stream.send(b"tail"), 0);
        assert!(stream.interest().contains(EventFlags::OUT));

        let mut filler = vec![0; taken];
        peer.read_exact(&mut filler).unwrap();
        assert_eq!(stream.event(EventFlags::OUT), waiting + 4);
        assert!(!stream.interest().contains(EventFlags::OUT));

        let mut rest = vec![0; waiting + 4];
        peer.read_exact(&mut rest).unwrap();
        assert!(rest.ends_with(b"tail"));
    }

    #[test]
    fn end_of_file_follows_the_backlog() {
        let (mut stream, mut peer) = pair();
        fill(&mut stream);
        stream.send(b"last");
        stream.finish();
        assert!(!stream.outbound_ended());

        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        while !stream.outbound_ended() {
            stream.event(EventFlags::OUT);
            std::thread::yield_now();
        }
        assert!(reader.join().unwrap().ends_with(b"last"));
    }

    #[test]
    fn what_a_peer_wrote_before_it_closed_is_read_before_the_end() {
        let (mut stream, mut peer) = pair();
        peer.write_all(b"bye").unwrap();
        drop(peer);
        stream.event(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);

        let mut buffer = [0; 16];
        assert!(!stream.outbound_ended());
        assert_eq!(stream.receive(&mut buffer), Received::Data(3));
        assert_eq!(stream.receive(&mut buffer), Received::End);
        assert!(stream.outbound_ended());
    }

    #[test]
    fn a_short_read_waits_for_the_next_edge() {
        let (mut stream, mut peer) = pair();
        let mut buffer = [0; 16];
        assert_eq!(stream.receive(&mut buffer), Received::Nothing);
        peer.write_all(b"one").unwrap();
        stream.event(EventFlags::IN);
        assert_eq!(stream.receive(&mut buffer), Received::Data(3));
        assert!(!stream.readable());
    }

    #[test]
    fn bytes_for_a_closed_peer_are_dropped() {
        let (mut stream, peer) = pair();
        drop(peer);
        assert_eq!(stream.send(b"anyone?"), 7);
        assert!(stream.outbound_ended());
        assert_eq!(stream.backlog(), 0);
    }

    #[test]
    fn a_refused_peer_cannot_write() {
        let (mut stream, mut peer) = pair();
        stream.refuse();
        assert!(peer.write_all(b"x").is_err());
        assert!(stream.inbound_ended());
    }
}
