//! A process's standard streams: connections to the host spliced to pipes or a pseudo-terminal.
//!
//! ```text
//! shim ◀─vsock─▶ agent ──pipe──▶ stdin          shim ◀─vsock─▶ agent ◀──pty master─▶ terminal
//!      ◀─vsock── agent ◀──pipe── stdout, stderr
//! ```
//! Output is copied until the last process that holds the stream has closed it, which may be long
//! after the container's init has ended; then the connection is shut down. When the host closes its
//! end, the pipe closes too, and the process learns it as from any other reader (EPIPE).

mod pipes;
mod ports;
mod terminal;

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tokio_vsock::VsockStream;

use self::pipes::Pump;
use crate::host::Host;

pub use self::ports::Ports;
pub use self::terminal::{Console, Terminal};

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
                    Some(connection) => pipes::input(connection, &mut pumps),
                    None => pipes::null(),
                };
                let stdout = match dial(host, "stdout", stdout).await? {
                    Some(connection) => pipes::output(connection, &mut pumps),
                    None => pipes::null(),
                };
                let stderr = match dial(host, "stderr", stderr).await? {
                    Some(connection) => pipes::output(connection, &mut pumps),
                    None => pipes::null(),
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
                let console = Console::listen(directory.join(name), input, output);
                console
                    .map(Self::Terminal)
                    .map_err(|source| StdioError::SetUp {
                        what: "the console socket",
                        source,
                    })
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
