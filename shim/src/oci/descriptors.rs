//! Descriptors sent over a Unix socket (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// As many as go at once.
const MOST: usize = 3;

/// Sends descriptors, at most three, with some bytes.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives what was sent at once: the bytes, as many as there is room for, and the descriptors.
pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_arrive_in_their_order_with_the_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut first, one) = io::pipe().unwrap();
        let (mut second, two) = io::pipe().unwrap();
        send(&here, b"tide", &[one.as_fd(), two.as_fd()]).unwrap();
        drop((one, two));

        let mut bytes = [0; 8];
        let (length, fds) = receive(&there, &mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"tide");
        for (fd, text) in fds.into_iter().zip(["high", "low"]) {
            File::from(fd).write_all(text.as_bytes()).unwrap();
        }
        let mut read = [String::new(), String::new()];
        first.read_to_string(&mut read[0]).unwrap();
        second.read_to_string(&mut read[1]).unwrap();
        assert_eq!(read, ["high", "low"]);
    }
}
