//! One end of the control socket: packets of JSON with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message in bytes. A configuration is a few hundred.
const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors of one packet (the kernel's own limit, `SCM_MAX_FD`, is 253).
const MAX_FDS: usize = 64;

/// One end of the control socket.
///
/// Sending and receiving take `&self`: packets are atomic, so a reader and a writer may share it.
/// Sending never waits, so that a peer that does not read holds nobody up. Whether receiving waits is the
/// descriptor's own mode ([`Channel::set_nonblocking`]).
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// Why a message could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// More descriptors than a packet takes, or a message too large.
    #[error(
        "message of {bytes} bytes and {fds} descriptors exceeds {MAX_MESSAGE} bytes or {MAX_FDS} descriptors"
    )]
    TooLarge {
        /// Length of the encoded message.
        bytes: usize,
        /// Number of descriptors given.
        fds: usize,
    },
    /// The message has no JSON form.
    #[error("encode a control message")]
    Encode(#[source] serde_json::Error),
    /// The peer closed its end.
    #[error("control socket closed by its peer")]
    Closed,
    /// The socket refused it: `WouldBlock` when the peer does not read.
    #[error("send on the control socket")]
    Socket(#[source] io::Error),
}

/// Why no message could be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer closed its end.
    #[error("control socket closed by its peer")]
    Closed,
    /// The packet or its descriptors did not fit and were cut.
    #[error("control message exceeds {MAX_MESSAGE} bytes or {MAX_FDS} descriptors")]
    TooLarge,
    /// The packet is whole, and of its descriptors some are lost.
    #[error(
        "receive the descriptors of a control message: this process has as many open files as it may"
    )]
    NoDescriptor,
    /// The packet is not a message of this protocol: the two programs are of different builds.
    #[error("decode a control message; are hull-vmm and the shim of one build?")]
    Decode(#[source] serde_json::Error),
    /// The socket failed; `WouldBlock` when it is non-blocking and nothing waits.
    #[error("receive on the control socket")]
    Socket(#[source] io::Error),
}

impl ReceiveError {
    /// Whether the call found nothing to receive on a non-blocking socket.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Socket(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Channel {
    /// Makes both ends. They are closed on exec; the one to inherit must be told otherwise.
    ///
    /// # Errors
    /// As `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: ours }, Self { socket: theirs }))
    }

    /// Makes receiving return `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// As `ioctl(2)` with `FIONBIO`.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.socket, true)?;
        Ok(())
    }

    /// Sends one message with the descriptors that belong to it, which stay open here.
    ///
    /// # Errors
    /// See [`SendError`]. A message is sent whole or not at all.
    pub fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let bytes = serde_json::to_vec(message).map_err(SendError::Encode)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(SendError::TooLarge {
                bytes: bytes.len(),
                fds: fds.len(),
            });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits, "the space holds MAX_FDS descriptors");
        }
        let iov = [IoSlice::new(&bytes)];
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &iov, &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The latter when it closed it with something unread.
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SendError::Closed),
                Err(e) => return Err(SendError::Socket(e.into())),
            }
        }
    }

    /// Receives one message and its descriptors, which are closed on exec.
    ///
    /// # Errors
    /// See [`ReceiveError`]. Descriptors of a refused packet are closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), ReceiveError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut iov = [IoSliceMut::new(&mut bytes)];
            match recvmsg(
                &self.socket,
                &mut iov,
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                // The latter comes once, before what is left to read, when the peer closed its end with
                // something unread.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(e) => return Err(ReceiveError::Socket(e.into())),
            }
        };
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ReceiveError::TooLarge);
        }
        // There is room for as many as a message may have: the kernel could not make them ours (unix(7)).
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ReceiveError::NoDescriptor);
        }
        let message =
            serde_json::from_slice(&bytes[..received.bytes]).map_err(ReceiveError::Decode)?;
        Ok((message, fds))
    }
}

impl From<OwnedFd> for Channel {
    /// Takes over an end that was inherited; it must be a `SOCK_SEQPACKET` socket.
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Channel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::{Event, Request};

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (shim, vmm) = Channel::pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        vmm.send(&Event::Dialled { port: 7 }, &[theirs.as_fd()])
            .unwrap();
        drop(theirs);

        let (event, fds): (Event, _) = shim.receive().unwrap();
        assert_eq!(event, Event::Dialled { port: 7 });
        let mut peer = UnixStream::from(fds.into_iter().next().unwrap());
        peer.write_all(b"tide").unwrap();
        drop(peer);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "tide");
    }

    #[test]
    fn a_closed_peer_is_told_apart_from_an_empty_queue() {
        let (shim, vmm) = Channel::pair().unwrap();
        shim.set_nonblocking().unwrap();
        assert!(shim.receive::<Event>().unwrap_err().would_block());
        drop(vmm);
        assert!(matches!(shim.receive::<Event>(), Err(ReceiveError::Closed)));
        assert!(matches!(
            shim.send(&Request::Stop, &[]),
            Err(SendError::Closed)
        ));
    }

    #[test]
    fn the_last_words_of_a_peer_arrive_although_it_has_not_read_everything() {
        let (shim, vmm) = Channel::pair().unwrap();
        shim.send(&Request::Stop, &[]).unwrap();
        vmm.send(&Event::Started, &[]).unwrap();
        drop(vmm);
        assert!(matches!(shim.receive(), Ok((Event::Started, _))));
        assert!(matches!(shim.receive::<Event>(), Err(ReceiveError::Closed)));
        assert!(matches!(
            shim.send(&Request::Stop, &[]),
            Err(SendError::Closed)
        ));
    }

    #[test]
    fn a_peer_that_does_not_read_holds_nobody_up() {
        let (shim, _vmm) = Channel::pair().unwrap();
        let refused = std::iter::repeat_with(|| shim.send(&Request::Stop, &[]))
            .take(1_000_000)
            .find_map(Result::err);
        let Some(SendError::Socket(refused)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_packet_of_another_protocol_is_refused() {
        let (shim, vmm) = Channel::pair().unwrap();
        shim.send(&"hello", &[]).unwrap();
        assert!(matches!(
            vmm.receive::<Request>(),
            Err(ReceiveError::Decode(_))
        ));
    }

    /// A peer closed descriptors that a request named and that were not the request's. Here a packet
    /// that is refused closes its own, each once, and no other.
    #[test]
    fn ghsa_g6mw_f26h_4jgp_a_refused_packet_closes_its_own_descriptors_alone() {
        let (shim, vmm) = Channel::pair().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        shim.send(&"hello", &[theirs.as_fd()]).unwrap();
        assert!(vmm.receive::<Request>().is_err());
        // It is open here, and nowhere else.
        let mut theirs = theirs;
        theirs.write_all(b"tide").unwrap();
        drop(theirs);
        let mut text = String::new();
        (&ours).read_to_string(&mut text).unwrap();
        assert_eq!(text, "tide");
        shim.send(&Request::Stop, &[]).unwrap();
        assert!(vmm.receive::<Request>().is_ok());
    }

    #[test]
    fn a_descriptor_for_which_there_is_no_room_is_lost_and_the_channel_is_not() {
        let (shim, vmm) = Channel::pair().unwrap();
        vmm.send(&Event::Dialled { port: 7 }, &[vmm.as_fd()])
            .unwrap();
        vmm.send(&Event::Started, &[]).unwrap();
        let next = shim.as_fd().try_clone_to_owned().unwrap();
        let given = getrlimit(Resource::Nofile);
        let full = Rlimit {
            current: u64::try_from(next.as_raw_fd()).ok(),
            ..given
        };
        drop(next);
        setrlimit(Resource::Nofile, full).unwrap();
        let lost = shim.receive::<Event>();
        setrlimit(Resource::Nofile, given).unwrap();
        assert!(matches!(lost, Err(ReceiveError::NoDescriptor)), "{lost:?}");
        assert!(matches!(shim.receive(), Ok((Event::Started, _))));
    }

    #[test]
    fn more_descriptors_than_a_packet_takes_are_refused_before_sending() {
        let (shim, _vmm) = Channel::pair().unwrap();
        let fds = vec![shim.as_fd(); MAX_FDS + 1];
        assert!(matches!(
            shim.send(&Request::Stop, &fds),
            Err(SendError::TooLarge { .. })
        ));
    }
}
