//! Streams that are a terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio_vsock::VsockStream;

use super::BUFFER;
use crate::sys;

/// A terminal that libcontainer has not made yet.
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
    input: Option<VsockStream>,
    output: Option<VsockStream>,
}

/// The master side of a process's terminal.
#[derive(Clone, Debug)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
}

impl Console {
    /// Waits for a terminal on a socket at `path`; what is typed and shown there goes over these.
    ///
    /// # Errors
    /// What `bind(2)` says.
    pub(super) fn listen(
        path: PathBuf,
        input: Option<VsockStream>,
        output: Option<VsockStream>,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        Ok(Self {
            listener,
            path,
            input,
            output,
        })
    }

    /// Where to send the terminal's master side (unix(7) `SCM_RIGHTS`).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal, which libcontainer has sent, and serves it.
    pub(super) fn open(mut self) -> io::Result<Terminal> {
        // libcontainer has connected and sent by now, or never will.
        self.listener.set_nonblocking(true)?;
        let (socket, _) = self.listener.accept()?;
        let master = sys::receive_fd(&socket)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = sys::watch(master, Interest::READABLE | Interest::WRITABLE)?;
        let terminal = Terminal {
            master: master.into(),
        };
        let (input, output) = (self.input.take(), self.output.take());
        tokio::spawn(terminal.clone().serve(input, output));
        Ok(terminal)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may be gone with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Terminal {
    /// Sets the size, in characters.
    ///
    /// # Errors
    /// What the ioctl says.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        sys::set_window_size(self.master.as_fd(), width, height)
    }

    /// Copies both ways until no process has the terminal open any more.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(self, input: Option<S>, output: Option<S>) {
        let typing = async {
            if let Some(input) = input {
                self.type_in(input).await;
            }
            // The end of typing is no end of file: that would be a character (termios(3), VEOF).
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.show(output) => (),
            () = typing => (),
        }
    }

    async fn show<W: AsyncWrite + Unpin>(&self, mut to: Option<W>) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = self.master.async_io(Interest::READABLE, |master| {
                Ok(rustix::io::read(master, &mut buffer)?)
            });
            // EIO: the last process has closed it (pty(7)).
            let count = match read.await {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            if let Some(connection) = &mut to
                && connection.write_all(&buffer[..count]).await.is_err()
            {
                // Nobody looks, but the process must not block.
                to = None;
            }
        }
        if let Some(mut connection) = to {
            let _ = connection.shutdown().await;
        }
    }

    async fn type_in(&self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; BUFFER];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let mut typed = &buffer[..count];
            while !typed.is_empty() {
                let write = self.master.async_io(Interest::WRITABLE, |master| {
                    Ok(rustix::io::write(master, typed)?)
                });
                match write.await {
                    Ok(count) => typed = &typed[count..],
                    Err(_) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_terminal_is_received_served_and_closed_with_its_process() {
        let pty = nix::pty::openpty(None, None).unwrap();
        rustix::io::ioctl_fionbio(&pty.master, true).unwrap();
        let master = sys::watch(pty.master, Interest::READABLE | Interest::WRITABLE).unwrap();
        let terminal = Terminal {
            master: master.into(),
        };
        let (mut shim, connection) = UnixStream::pair().unwrap();
        terminal.resize(132, 43).unwrap();
        let served = tokio::spawn(terminal.serve(None, Some(connection)));

        let mut process = File::from(pty.slave);
        let size = rustix::termios::tcgetwinsize(&process).unwrap();
        process.write_all(b"shown").unwrap();
        drop(process);

        let mut shown = String::new();
        shim.read_to_string(&mut shown).await.unwrap();
        served.await.unwrap();
        assert_eq!(
            (shown.as_str(), size.ws_col, size.ws_row),
            ("shown", 132, 43)
        );
    }
}
