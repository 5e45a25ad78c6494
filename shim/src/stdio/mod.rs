//! Standard streams: containerd's named pipes on one side, the guest's connections on the other.
//!
//! Both ends of an output's pipe are held here, so that a reader who comes late or leaves does no
//! harm; it is closed when the guest's stream has ended and every byte is in it, which is what the
//! reader waits for.
//!
//! ```text
//! an input's pipe:  Open ──Start──▶ Held ──CloseIO──▶ Released
//!                     └──Start, its writer has gone already──▲
//! ```
//! From Start on the input has a writer of ours, so that a client may leave and another come; it
//! ends when CloseIO was called and all writers are gone. Before Start nobody can have called CloseIO
//! (`ctr run` forgets to when its own input is at its end that early, and hangs on runc): there a
//! writer's leaving is the end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::ports::{Expected, Ports};

/// Bytes copied at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// A process's streams as containerd names them; an empty path is no stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Named pipe to read from.
    pub stdin: String,
    /// Named pipe, or `file://` URI, to write to.
    pub stdout: String,
    /// The same; with a terminal there is none.
    pub stderr: String,
    /// One pseudo-terminal for all.
    pub terminal: bool,
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Neither a path nor a scheme that is known.
    #[error("standard stream {0:?} is not supported; use a named pipe or file://")]
    Scheme(String),
    /// The kernel refused.
    #[error("open standard stream {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Streams that are copied, or will be as soon as the guest connects.
#[derive(Debug, Default)]
pub struct Streams {
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    input: Input,
}

/// See the module's description.
#[derive(Debug, Default)]
enum Input {
    /// Nobody of ours writes: the reader's descriptor.
    Open(OwnedFd),
    /// Our own end for writing keeps the pipe from ending.
    Held { _writer: File },
    /// It ends with its last writer, or there is none.
    #[default]
    Released,
}

/// Opens what `paths` names and starts copying; also says what to tell the agent.
///
/// # Errors
/// When a stream cannot be opened; none is left open then.
pub fn open(paths: &Paths, ports: &Ports) -> Result<(Streams, agent_protocol::Stdio), StdioError> {
    let stdin = input(&paths.stdin)?;
    let stdout = output(&paths.stdout)?;
    let stderr = if paths.terminal {
        None
    } else {
        output(&paths.stderr)?
    };

    let mut streams = Streams::default();
    let mut stdio = agent_protocol::Stdio {
        terminal: paths.terminal,
        ..Default::default()
    };
    if let Some((reader, descriptor)) = stdin {
        let expected = ports.expect();
        stdio.stdin = expected.port;
        streams.input = Input::Open(descriptor);
        streams.stdin = Some(tokio::spawn(copy_in(reader, expected)));
    }
    if let Some(sink) = stdout {
        let expected = ports.expect();
        stdio.stdout = expected.port;
        streams.outputs.push(tokio::spawn(copy_out(expected, sink)));
    }
    if let Some(sink) = stderr {
        let expected = ports.expect();
        stdio.stderr = expected.port;
        streams.outputs.push(tokio::spawn(copy_out(expected, sink)));
    }
    Ok((streams, stdio))
}

impl Streams {
    /// The process is started: its input stays open until [`Streams::close_stdin`], unless its end is
    /// there already.
    pub fn hold_stdin(&mut self) {
        let Input::Open(reader) = &self.input else {
            return;
        };
        self.input = match hold(reader) {
            Ok(Some(writer)) => Input::Held { _writer: writer },
            Ok(None) => Input::Released,
            Err(e) => {
                warn!("hold standard input open: {e}");
                Input::Released
            }
        };
    }

    /// Lets the input end with its last writer but us, after what is in the pipe.
    pub fn close_stdin(&mut self) {
        self.input = Input::Released;
    }

    /// Waits until all output has been copied, at most `patience`: a process that was left behind
    /// may keep a stream open for ever.
    pub async fn drained(&mut self, patience: Duration) {
        let all = async {
            for output in &mut self.outputs {
                let _ = output.await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for copy in self.stdin.iter().chain(&self.outputs) {
            copy.abort();
        }
    }
}

type Sink = Box<dyn AsyncWrite + Send + Unpin>;

fn input(path: &str) -> Result<Option<(pipe::Receiver, OwnedFd)>, StdioError> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = local(path)?;
    let opened = pipe::OpenOptions::new()
        .open_receiver(path)
        .and_then(|reader| Ok((reader.as_fd().try_clone_to_owned()?, reader)));
    match opened {
        Ok((descriptor, reader)) => Ok(Some((reader, descriptor))),
        Err(source) => Err(StdioError::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opens the pipe for writing, unless its last writer has gone: fifo(7) tells that by a hang-up, and
/// none of a pipe that nobody has opened yet.
fn hold(reader: &OwnedFd) -> io::Result<Option<File>> {
    let mut polled = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    if polled[0].revents().contains(PollFlags::HUP) {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    // Does not wait: there is a reader.
    OpenOptions::new().write(true).open(path).map(Some)
}

fn output(path: &str) -> Result<Option<Sink>, StdioError> {
    if path.is_empty() {
        return Ok(None);
    }
    if let Some(path) = path.strip_prefix("file://") {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        let file = opened.map_err(|source| StdioError::Open {
            path: path.into(),
            source,
        })?;
        return Ok(Some(Box::new(tokio::fs::File::from_std(file))));
    }
    let path = local(path)?;
    let opened = pipe::OpenOptions::new().read_write(true).open_sender(path);
    match opened {
        Ok(pipe) => Ok(Some(Box::new(pipe))),
        Err(source) => Err(StdioError::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

fn local(path: &str) -> Result<&Path, StdioError> {
    if path.starts_with('/') {
        Ok(Path::new(path))
    } else {
        Err(StdioError::Scheme(path.into()))
    }
}

async fn copy_in(mut pipe: pipe::Receiver, expected: Expected) {
    let Ok(mut socket) = expected.connected().await else {
        return;
    };
    // Fails when the process has closed its input: what it does not want is nobody's.
    if copy(&mut pipe, &mut socket).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}

async fn copy_out(expected: Expected, mut sink: Sink) {
    let Ok(mut socket) = expected.connected().await else {
        return;
    };
    if let Err(e) = copy(&mut socket, &mut sink).await {
        warn!("copy standard output: {e}");
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.flush().await;
        }
        to.write_all(&chunk[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::stat::Mode;
    use tokio::net::UnixStream;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        ports: Ports,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["in", "out"] {
                nix::unistd::mkfifo(&directory.path().join(name), Mode::S_IRWXU).unwrap();
            }
            Self {
                directory,
                ports: Ports::default(),
            }
        }

        fn path(&self, name: &str) -> String {
            self.directory.path().join(name).display().to_string()
        }

        /// Connects as the guest would.
        fn connect(&self, port: u32) -> UnixStream {
            let (ours, theirs) = UnixStream::pair().unwrap();
            self.ports.deliver(port, theirs.into_std().unwrap().into());
            ours
        }
    }

    #[tokio::test]
    async fn output_is_there_for_a_reader_who_comes_late_and_then_ends() {
        let fixture = Fixture::new();
        let paths = Paths {
            stdout: fixture.path("out"),
            ..Paths::default()
        };
        let (mut streams, stdio) = open(&paths, &fixture.ports).unwrap();
        let mut guest = fixture.connect(stdio.stdout);
        guest.write_all(b"tide").await.unwrap();
        let path = fixture.path("out");
        let reader = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::open(path)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        });
        // The reader has the pipe open before the stream ends.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(guest);
        streams.drained(Duration::from_secs(5)).await;
        assert_eq!(reader.await.unwrap(), "tide");
    }

    fn with_input(fixture: &Fixture) -> (Streams, agent_protocol::Stdio) {
        let paths = Paths {
            stdin: fixture.path("in"),
            ..Paths::default()
        };
        open(&paths, &fixture.ports).unwrap()
    }

    async fn write(fixture: &Fixture, text: &'static [u8]) {
        let path = fixture.path("in");
        let written = tokio::task::spawn_blocking(move || {
            let mut pipe = OpenOptions::new().write(true).open(path).unwrap();
            pipe.write_all(text).unwrap();
        });
        written.await.unwrap();
    }

    #[tokio::test]
    async fn input_survives_its_writers_and_ends_with_the_last_after_close() {
        let fixture = Fixture::new();
        let (mut streams, stdio) = with_input(&fixture);
        streams.hold_stdin();
        let mut guest = fixture.connect(stdio.stdin);
        write(&fixture, b"high ").await;
        let mut text = vec![0; 5];
        guest.read_exact(&mut text).await.unwrap();
        let mut more = [0];
        let ended = tokio::time::timeout(Duration::from_millis(50), guest.read(&mut more)).await;
        assert!(ended.is_err(), "it ended with a writer that may come back");

        write(&fixture, b"low").await;
        streams.close_stdin();
        guest.read_to_end(&mut text).await.unwrap();
        assert_eq!(text, b"high low");
    }

    #[tokio::test]
    async fn input_whose_writer_has_gone_before_the_start_ends() {
        let fixture = Fixture::new();
        let (mut streams, stdio) = with_input(&fixture);
        write(&fixture, b"low").await;
        streams.hold_stdin();
        let mut guest = fixture.connect(stdio.stdin);
        let mut text = String::new();
        guest.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "low");
    }

    #[tokio::test]
    async fn closing_the_input_before_the_guest_connects_loses_nothing() {
        let fixture = Fixture::new();
        let (mut streams, stdio) = with_input(&fixture);
        streams.hold_stdin();
        write(&fixture, b"low").await;
        streams.close_stdin();
        let mut guest = fixture.connect(stdio.stdin);
        let mut text = String::new();
        guest.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "low");
    }

    #[tokio::test]
    async fn input_that_was_closed_before_the_start_is_not_held() {
        let fixture = Fixture::new();
        let (mut streams, stdio) = with_input(&fixture);
        let writer = OpenOptions::new().write(true).open(fixture.path("in"));
        let mut guest = fixture.connect(stdio.stdin);
        streams.close_stdin();
        streams.hold_stdin();
        drop(writer.unwrap());
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_scheme_that_is_not_known_is_named() {
        let paths = Paths {
            stdout: "binary:///bin/log".into(),
            ..Paths::default()
        };
        let error = open(&paths, &Ports::default()).unwrap_err();
        assert!(error.to_string().contains("binary:///bin/log"));
    }

    #[tokio::test]
    async fn a_terminal_has_no_standard_error() {
        let fixture = Fixture::new();
        let paths = Paths {
            stdout: fixture.path("out"),
            stderr: fixture.path("missing"),
            terminal: true,
            ..Paths::default()
        };
        let (_streams, stdio) = open(&paths, &fixture.ports).unwrap();
        assert_eq!((stdio.terminal, stdio.stderr), (true, 0));
    }
}
