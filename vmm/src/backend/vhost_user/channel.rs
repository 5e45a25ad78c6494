//! The socket to the daemon: messages out, answers in, each by its deadline.
//!
//! Acknowledgements are read behind the last of several messages: the daemon works through them
//! while we write the next, and the guest, which boots meanwhile, waits for one answer and not for a
//! dozen.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Request, flags and size of the payload, 32 bits each.
const HEADER_LEN: usize = 12;
/// Version 1 of the protocol, in the flags of every message.
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Requests, by the names and numbers of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
    ResetDevice = 34,
}

/// Why the daemon is of no use.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// It closed the socket or the socket failed.
    #[error("talk to the vhost-user daemon")]
    Socket(#[source] io::Error),
    /// It did not answer in time.
    #[error("no answer from the vhost-user daemon for {0:?}")]
    Timeout(Duration),
    /// Its answer does not belong to the question.
    #[error("nonsensical answer from the vhost-user daemon to request {0}")]
    Answer(u32),
    /// It answered that it could not do its part.
    #[error("vhost-user daemon refused request {0}")]
    Refused(u32),
    /// It does not offer `VIRTIO_F_VERSION_1` or `VHOST_USER_F_PROTOCOL_FEATURES`.
    #[error("vhost-user daemon lacks features: it offers {0:#x}")]
    Features(u64),
    /// It does not offer `VHOST_USER_PROTOCOL_F_REPLY_ACK`.
    #[error("vhost-user daemon lacks protocol features: it offers {0:#x}")]
    ProtocolFeatures(u64),
    /// The memory has more regions than a table takes.
    #[error("{0} memory regions are more than a vhost-user daemon takes")]
    Regions(usize),
    /// An earlier request failed; the daemon is not asked again.
    #[error("vhost-user daemon failed before")]
    Lost,
}

/// A connected stream socket that speaks vhost-user.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    patience: Duration,
    /// Requests whose acknowledgements were not read yet, in order.
    owed: VecDeque<Request>,
}

impl Channel {
    /// Every answer may take as long as `patience`.
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> Self {
        Self {
            socket: socket.into(),
            patience,
            owed: VecDeque::new(),
        }
    }

    /// Asks for eight bytes.
    pub(super) fn get(&mut self, request: Request, payload: &[u8]) -> Result<u64, VhostUserError> {
        self.confirm()?;
        self.send(request, payload)?;
        Ok(u64::from_ne_bytes(self.receive(request)?))
    }

    /// Tells the daemon something that it does not acknowledge.
    pub(super) fn send(&self, request: Request, payload: &[u8]) -> Result<(), VhostUserError> {
        self.send_with(request, 0, payload, &[])
    }

    /// Tells the daemon something; whether it has taken it in is [`Channel::confirm`]'s to say.
    pub(super) fn set(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<(), VhostUserError> {
        if let Err(hung_up) = self.send_with(request, FLAG_NEED_REPLY, payload, fds) {
            // What it had said before it hung up is the better reason.
            self.confirm()?;
            return Err(hung_up);
        }
        self.owed.push_back(request);
        Ok(())
    }

    /// Waits until the daemon has taken in all that it was told.
    pub(super) fn confirm(&mut self) -> Result<(), VhostUserError> {
        while let Some(request) = self.owed.pop_front() {
            if u64::from_ne_bytes(self.receive(request)?) != 0 {
                return Err(VhostUserError::Refused(request as u32));
            }
        }
        Ok(())
    }

    fn send_with(
        &self,
        request: Request,
        flags: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) -> Result<(), VhostUserError> {
        let size = u32::try_from(payload.len()).expect("payloads are a few hundred bytes");
        let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
        message.extend((request as u32).to_ne_bytes());
        message.extend((VERSION | flags).to_ne_bytes());
        message.extend(size.to_ne_bytes());
        message.extend(payload);
        // A daemon that reads nothing is noticed by its missing answer long before the socket's
        // buffer is full, so this neither waits nor sends a part.
        let sent = loop {
            match self.socket.send_with_fds(&[message.as_slice()], fds) {
                Err(e) if e.errno() == Errno::INTR.raw_os_error() => {}
                Err(e) => return Err(VhostUserError::Socket(e.into())),
                Ok(sent) => break sent,
            }
        };
        if sent == message.len() {
            Ok(())
        } else {
            Err(VhostUserError::Socket(io::ErrorKind::WriteZero.into()))
        }
    }

    /// Receives the answer to `request`, which has `N` bytes.
    fn receive<const N: usize>(&self, request: Request) -> Result<[u8; N], VhostUserError> {
        let deadline = Instant::now() + self.patience;
        let header: [u8; HEADER_LEN] = self.read(deadline)?;
        match decode_header(&header) {
            (number, flags, size)
                if number == request as u32
                    && flags & !FLAG_NEED_REPLY == VERSION | FLAG_REPLY
                    && usize::try_from(size) == Ok(N) =>
            {
                self.read(deadline)
            }
            _ => Err(VhostUserError::Answer(request as u32)),
        }
    }

    fn read<const N: usize>(&self, deadline: Instant) -> Result<[u8; N], VhostUserError> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            self.wait(deadline)?;
            // Descriptors an answer may bring are closed by the kernel: there is no room for them.
            match recv(&self.socket, rest, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    return Err(VhostUserError::Socket(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok((_, count)) => filled += count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(VhostUserError::Socket(e.into())),
            }
        }
        Ok(bytes)
    }

    fn wait(&self, deadline: Instant) -> Result<(), VhostUserError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VhostUserError::Timeout(self.patience));
            }
            let timeout = Timespec::try_from(left).expect("ten seconds fit");
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(VhostUserError::Socket(e.into())),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Request, flags and size.
fn decode_header(header: &[u8; HEADER_LEN]) -> (u32, u32, u32) {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *header;
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    )
}
