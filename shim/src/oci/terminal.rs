//! A terminal on the host for a process whose own is the guest's: what is typed goes through as it
//! is, and the guest's terminal does what a terminal does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::descriptors;
use super::error::OciError;

/// What comes with the master: its name.
const NAME: &[u8] = b"/dev/ptmx";

/// Makes a terminal, sends its master to who listens at `socket` (runc's docs/terminals.md,
/// "Detached New Terminal") and returns the slave, through which bytes go as they are.
pub(super) fn send(socket: &Path) -> Result<OwnedFd, OciError> {
    let pty = nix::pty::openpty(None, None).map_err(OciError::kernel("make a terminal"))?;
    make_raw(pty.slave.as_fd())?;
    let sent = UnixStream::connect(socket)
        .and_then(|stream| descriptors::send(&stream, NAME, &[pty.master.as_fd()]));
    sent.map_err(OciError::file("send the terminal to", socket))?;
    Ok(pty.slave)
}

/// Makes the terminal this process's own, so that it is told when its size changes.
pub(super) fn adopt(terminal: BorrowedFd<'_>) -> Result<(), OciError> {
    let adopted = setsid().and_then(|_| ioctl_tiocsctty(terminal));
    adopted.map_err(OciError::kernel("make the terminal this process's own"))
}

/// Width and height of the terminal in characters, if it is one and has a size.
pub(super) fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = tcgetwinsize(terminal).ok()?;
    (size.ws_col != 0 && size.ws_row != 0).then_some((size.ws_col, size.ws_row))
}

fn make_raw(terminal: BorrowedFd<'_>) -> Result<Termios, OciError> {
    let error = OciError::kernel("set the terminal");
    let set = tcgetattr(terminal).and_then(|before| {
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(before)
    });
    set.map_err(error)
}

/// The user's own terminal, raw as long as this is here.
pub(super) struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Makes standard input raw, if it is a terminal.
    pub(super) fn standard_input() -> Result<Self, OciError> {
        let stdin = io::stdin();
        let before = isatty(&stdin)
            .then(|| make_raw(stdin.as_fd()))
            .transpose()?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_master_is_sent_and_bytes_pass_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("console");
        let listener = UnixListener::bind(&socket).unwrap();
        let slave = send(&socket).unwrap();

        let (stream, _) = listener.accept().unwrap();
        let mut name = [0; 64];
        let (length, sent) = descriptors::receive(&stream, &mut name).unwrap();
        let mut master = File::from(sent.into_iter().next().unwrap());
        assert_eq!(&name[..length], NAME);

        master.write_all(b"\x03\r").unwrap();
        let (mut slave, mut read) = (File::from(slave), [0; 2]);
        slave.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"\x03\r");
        slave.write_all(b"\n").unwrap();
        master.read_exact(&mut read[..1]).unwrap();
        assert_eq!(read[0], b'\n');
    }

    #[test]
    fn without_a_terminal_there_is_no_size() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()), None);
    }
}
