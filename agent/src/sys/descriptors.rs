//! Descriptors: one that a peer sends, one that the runtime waits for, and that of a terminal.

#![expect(
    unsafe_code,
    reason = "an ioctl, and descriptors whose owner the kernel or the caller knows"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sets a terminal's size in characters (`TIOCSWINSZ`, tty_ioctl(4)).
///
/// # Errors
/// `ENOTTY` if `terminal` is none.
pub fn set_window_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which lives across the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Receives one descriptor that the peer sent with `SCM_RIGHTS` (unix(7)).
///
/// # Errors
/// `InvalidData` if the message carries none, or what `recvmsg(2)` says.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut data = [0; 64];
    let mut data = [IoSliceMut::new(&mut data)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let fd = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers a descriptor with the runtime of the calling task.
///
/// # Errors
/// What `epoll_ctl(2)` says, e.g. `EPERM` for a file that is always ready.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and it lives
    // in the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_message_without_a_descriptor_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"none").unwrap();

        let error = receive_fd(&ours).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
