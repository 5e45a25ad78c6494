//! A process's standard streams: connections to the host spliced to pipes or a pseudo-terminal.
//!
//! ```text
//! shim ◀─vsock─▶ agent ──pipe──▶ stdin          shim ◀─vsock─▶ agent ◀──pty master─▶ terminal
//!      ◀─vsock── agent ◀──pipe── stdout, stderr
//! ```
//! Output is copied until the last process that holds the stream has closed it, which may be long
//! after the container's init has ended; then the connection is shut down. When the host closes its
//! end, the pipe closes too, and the process learns it as from any other reader (EPIPE).

use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio_vsock::VsockStream;

use crate::host::Host;
use crate::sys;

/// Bytes in flight in one direction of one stream.
const BUFFER: usize = 32 << 10;

/// Why a process has no streams.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A request that contradicts itself.
    #[error("a terminal has no stderr of its own, but port {0} was given for it")]
    TerminalStderr(u32),
    /// The shim does not wait there.
    #[error("connect {stream} to port {port} of the host")]
    Connect {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// The vsock port.
        port: u32,
        /// The cause.
        source: io::Error,
    },
    /// The guest is out of something.
    #[error("set up {what}")]
    SetUp {
        /// The part.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Which port each stream goes to; `None` stands for /dev/null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Three streams.
    Pipes {
        /// Standard input.
        stdin: Option<NonZeroU32>,
        /// Standard output.
        stdout: Option<NonZeroU32>,
        /// Standard error.
        stderr: Option<NonZeroU32>,
    },
    /// One terminal.
    Terminal {
        /// What is typed.
        input: Option<NonZeroU32>,
        /// What it shows.
        output: Option<NonZeroU32>,
    },
}

impl Ports {
    /// Whether this is a terminal.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Terminal { .. })
    }
}

impl TryFrom<&agent_protocol::Stdio> for Ports {
    type Error = StdioError;

    fn try_from(stdio: &agent_protocol::Stdio) -> Result<Self, StdioError> {
        let stdin = NonZeroU32::new(stdio.stdin);
        let stdout = NonZeroU32::new(stdio.stdout);
        match (stdio.terminal, NonZeroU32::new(stdio.stderr)) {
            (false, stderr) => Ok(Self::Pipes {
                stdin,
                stdout,
                stderr,
            }),
            (true, None) => Ok(Self::Terminal {
                input: stdin,
                output: stdout,
            }),
            (true, Some(port)) => Err(StdioError::TerminalStderr(port.get())),
        }
    }
}

/// Moves one stream's data until it ends.
type Pump = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Streams that are connected to the host but not to a process yet.
pub enum Streams {
    /// The process's ends of its pipes, and what will serve ours.
    Pipes {
        /// 0, 1 and 2.
        ends: [OwnedFd; 3],
        /// One for each stream that is not /dev/null.
        pumps: Vec<Pump>,
    },
    /// Where the process's terminal will be sent.
    Terminal(Console),
}

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

impl Streams {
    /// Connects to the host. A terminal will be received on a socket in `directory`, under `name`.
    ///
    /// # Errors
    /// `Connect` and `SetUp`.
    pub async fn connect(
        host: Host,
        ports: Ports,
        directory: &Path,
        name: &str,
    ) -> Result<Self, StdioError> {
        match ports {
            Ports::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let mut pumps = Vec::new();
                let stdin = match dial(host, "stdin", stdin).await? {
                    Some(connection) => input_pipe(connection, &mut pumps),
                    None => null(),
                };
                let stdout = match dial(host, "stdout", stdout).await? {
                    Some(connection) => output_pipe(connection, &mut pumps),
                    None => null(),
                };
                let stderr = match dial(host, "stderr", stderr).await? {
                    Some(connection) => output_pipe(connection, &mut pumps),
                    None => null(),
                };
                let set_up = |what| move |source| StdioError::SetUp { what, source };
                let ends = [
                    stdin.map_err(set_up("stdin"))?,
                    stdout.map_err(set_up("stdout"))?,
                    stderr.map_err(set_up("stderr"))?,
                ];
                Ok(Self::Pipes { ends, pumps })
            }
            Ports::Terminal { input, output } => {
                let input = dial(host, "stdin", input).await?;
                let output = dial(host, "stdout", output).await?;
                let path = directory.join(name);
                let listener = UnixListener::bind(&path).map_err(|source| StdioError::SetUp {
                    what: "the console socket",
                    source,
                })?;
                Ok(Self::Terminal(Console {
                    listener,
                    path,
                    input,
                    output,
                }))
            }
        }
    }

    /// The descriptors that the process's side needs.
    pub fn ends(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pipes { ends, .. } => ends.iter().map(AsFd::as_fd).collect(),
            Self::Terminal(_) => Vec::new(),
        }
    }

    /// Starts to move data, once the process has its ends.
    ///
    /// # Errors
    /// `SetUp` if the terminal has not been sent.
    pub fn start(self) -> Result<Option<Terminal>, StdioError> {
        match self {
            Self::Pipes { ends, pumps } => {
                // The process alone may hold them: the last close is the end of the stream.
                drop(ends);
                for pump in pumps {
                    tokio::spawn(pump);
                }
                Ok(None)
            }
            Self::Terminal(console) => console.open().map(Some).map_err(|source| {
                let what = "the terminal";
                StdioError::SetUp { what, source }
            }),
        }
    }
}

impl Console {
    /// Where to send the terminal's master side (unix(7) `SCM_RIGHTS`).
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(mut self) -> io::Result<Terminal> {
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

async fn dial(
    host: Host,
    stream: &'static str,
    port: Option<NonZeroU32>,
) -> Result<Option<VsockStream>, StdioError> {
    let Some(port) = port.map(NonZeroU32::get) else {
        return Ok(None);
    };
    match host.connect(port).await {
        Ok(connection) => Ok(Some(connection)),
        Err(source) => Err(StdioError::Connect {
            stream,
            port,
            source,
        }),
    }
}

fn null() -> io::Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    Ok(null.into())
}

fn input_pipe(
    connection: impl AsyncRead + Unpin + Send + Sync + 'static,
    pumps: &mut Vec<Pump>,
) -> io::Result<OwnedFd> {
    let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let ours = pipe::Sender::from_owned_fd(ours)?;
    pumps.push(Box::pin(feed(connection, ours)));
    Ok(theirs)
}

fn output_pipe(
    connection: impl AsyncWrite + Unpin + Send + Sync + 'static,
    pumps: &mut Vec<Pump>,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let ours = pipe::Receiver::from_owned_fd(ours)?;
    pumps.push(Box::pin(drain(ours, connection)));
    Ok(theirs)
}

/// Copies from the host to a pipe; the end of either is the end of both.
async fn feed(mut from: impl AsyncRead + Unpin, mut to: pipe::Sender) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // Nobody can read the pipe any more (pipe(7)): do not hold the connection open.
            _ = to.ready(Interest::ERROR) => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Copies from a pipe to the host, then says that this was all.
async fn drain(mut from: pipe::Receiver, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::net::UnixStream;

    use super::*;

    fn request(terminal: bool, stderr: u32) -> agent_protocol::Stdio {
        agent_protocol::Stdio {
            terminal,
            stdin: 0,
            stdout: 1025,
            stderr,
            ..agent_protocol::Stdio::default()
        }
    }

    #[test]
    fn port_0_is_dev_null() {
        let ports = Ports::try_from(&request(false, 1026)).unwrap();

        let expected = Ports::Pipes {
            stdin: None,
            stdout: NonZeroU32::new(1025),
            stderr: NonZeroU32::new(1026),
        };
        assert_eq!(ports, expected);
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        assert!(Ports::try_from(&request(true, 0)).unwrap().is_terminal());
        assert!(matches!(
            Ports::try_from(&request(true, 1026)),
            Err(StdioError::TerminalStderr(1026))
        ));
    }

    #[tokio::test]
    async fn all_output_arrives_before_the_end_of_the_stream() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = output_pipe(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));
        let written = vec![b'x'; 60 << 10];

        File::from(theirs).write_all(&written).unwrap();

        let mut read = Vec::new();
        shim.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), written.len());
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_the_hosts_data_is_end_of_file() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = input_pipe(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));

        shim.write_all(b"typed").await.unwrap();
        drop(shim);

        pump.await.unwrap();
        let mut read = String::new();
        File::from(theirs).read_to_string(&mut read).unwrap();
        assert_eq!(read, "typed");
    }

    #[tokio::test]
    async fn input_ends_with_its_last_reader() {
        let (mut shim, connection) = UnixStream::pair().unwrap();
        let mut pumps = Vec::new();
        let theirs = input_pipe(connection, &mut pumps).unwrap();
        let pump = tokio::spawn(pumps.remove(0));

        drop(theirs);

        pump.await.unwrap();
        assert_eq!(shim.read(&mut [0]).await.unwrap(), 0);
    }

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
