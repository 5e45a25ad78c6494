//! Standard streams: containerd's named pipes, files and loggers on one side, the guest's
//! connections on the other.
//!
//! ```text
//! input    named pipe ─▶ copy ─▶ guest        input.rs: who holds it open
//! output   guest ─▶ copy ─▶ sink              sink.rs: pipe or file; logger.rs: a program
//! ```

mod input;
mod logger;
mod sink;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use log::warn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::input::Input;
use self::logger::Logger;
use self::sink::{Sink, Target};
use crate::ports::{Expected, Ports};

/// Bytes copied at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// A process's streams as containerd names them; an empty path is no stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Named pipe to read from.
    pub stdin: String,
    /// Named pipe, `file://` or `binary://` URI, to write to. A logger (`binary://`) gets standard
    /// error, too.
    pub stdout: String,
    /// The same; with a terminal there is none.
    pub stderr: String,
    /// One pseudo-terminal for all.
    pub terminal: bool,
}

/// Whose streams they are, as a logger is told.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Id of the container, or of the exec.
    pub id: &'a str,
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Neither a path nor a scheme that is known.
    #[error("standard stream {0:?} is not supported; use a named pipe, file:// or binary://")]
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
    /// A logger that cannot be run.
    #[error("start the logger {}", program.display())]
    Logger {
        /// Its program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A logger that does not close its descriptor 5 in time.
    #[error("the logger {} was not ready within {} s", program.display(), patience.as_secs())]
    LoggerNotReady {
        /// Its program.
        program: PathBuf,
        /// How long it had.
        patience: Duration,
    },
}

/// Streams that are copied, or will be as soon as the guest connects.
#[derive(Debug, Default)]
pub struct Streams {
    stdin: Option<JoinHandle<()>>,
    /// Ends when all output is where it belongs.
    outputs: Option<JoinHandle<()>>,
    /// Cancelled when `outputs` has ended.
    flushed: CancellationToken,
    logger: Option<Logger>,
    input: Input,
}

/// Opens what `paths` names and starts copying; also says what to tell the agent.
///
/// # Errors
/// When a stream cannot be opened; none is left open then.
pub async fn open(
    paths: &Paths,
    owner: Owner<'_>,
    ports: &Ports,
) -> Result<(Streams, agent_protocol::Stdio), StdioError> {
    let stdin = input::open(&paths.stdin)?;
    let mut logger = None;
    let (stdout, stderr) = match sink::target(&paths.stdout)? {
        Target::Logger(command) => {
            let (started, stdout, stderr) = Logger::start(&command, owner).await?;
            logger = Some(started);
            (Some(stdout), (!paths.terminal).then_some(stderr))
        }
        target => {
            let stderr = if paths.terminal { "" } else { &paths.stderr };
            (sink::open(target)?, sink::open(sink::target(stderr)?)?)
        }
    };

    let mut streams = Streams::default();
    let mut stdio = agent_protocol::Stdio {
        terminal: paths.terminal,
        ..Default::default()
    };
    if let Some((reader, input)) = stdin {
        let expected = ports.expect();
        stdio.stdin = expected.port;
        streams.input = input;
        streams.stdin = Some(tokio::spawn(input::copy(reader, expected)));
    }
    let mut copies = Vec::new();
    for (sink, port) in [(stdout, &mut stdio.stdout), (stderr, &mut stdio.stderr)] {
        if let Some(sink) = sink {
            let expected = ports.expect();
            *port = expected.port;
            copies.push(copy_out(expected, sink));
        }
    }
    let flushed = streams.flushed.clone().drop_guard();
    streams.outputs = Some(tokio::spawn(join_all(copies).map(|_| drop(flushed))));
    streams.logger = logger;
    Ok((streams, stdio))
}

impl Streams {
    /// The process is started: its input stays open until [`Streams::close_stdin`], unless its end is
    /// there already.
    pub fn hold_stdin(&mut self) {
        self.input.hold();
    }

    /// Lets the input end with its last writer but us, after what is in the pipe.
    pub fn close_stdin(&mut self) {
        self.input = Input::Released;
    }

    /// Waits until all output is where it belongs.
    pub fn flushed(&self) -> impl Future<Output = ()> + use<> {
        let flushed = self.flushed.clone();
        let has_any = self.outputs.is_some();
        async move {
            if has_any {
                flushed.cancelled().await;
            }
        }
    }

    /// Waits until all output has been copied, at most `patience`: a process that was left behind
    /// may keep a stream open for ever. Then a logger has its own time to end.
    pub async fn drained(&mut self, patience: Duration) {
        if let Some(mut outputs) = self.outputs.take() {
            let _ = tokio::time::timeout(patience, &mut outputs).await;
            outputs.abort();
        }
        if let Some(logger) = self.logger.take() {
            logger.end().await;
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for copy in [&self.stdin, &self.outputs].into_iter().flatten() {
            copy.abort();
        }
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

    use std::fs::OpenOptions;

    use super::*;

    const OWNER: Owner = Owner {
        namespace: "sea",
        id: "tide",
    };

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
        let (mut streams, stdio) = open(&paths, OWNER, &fixture.ports).await.unwrap();
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

    async fn with_input(fixture: &Fixture) -> (Streams, agent_protocol::Stdio) {
        let paths = Paths {
            stdin: fixture.path("in"),
            ..Paths::default()
        };
        open(&paths, OWNER, &fixture.ports).await.unwrap()
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
        let (mut streams, stdio) = with_input(&fixture).await;
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
        let (mut streams, stdio) = with_input(&fixture).await;
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
        let (mut streams, stdio) = with_input(&fixture).await;
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
        let (mut streams, stdio) = with_input(&fixture).await;
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
            stdout: "syslog:///bin/log".into(),
            ..Paths::default()
        };
        let error = open(&paths, OWNER, &Ports::default()).await.unwrap_err();
        assert!(error.to_string().contains("syslog:///bin/log"));
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
        let (_streams, stdio) = open(&paths, OWNER, &fixture.ports).await.unwrap();
        assert_eq!((stdio.terminal, stdio.stderr), (true, 0));
    }

    /// A logger's script: standard output and error, each with its arguments and environment.
    fn logger(fixture: &Fixture, text: &str) -> Paths {
        let script = fixture.path("logger");
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, executable).unwrap();
        Paths {
            stdout: format!("binary://{script}?log={}", fixture.path("log%20file")),
            ..Paths::default()
        }
    }

    #[tokio::test]
    async fn a_logger_gets_both_outputs_and_knows_whose_they_are() {
        let fixture = Fixture::new();
        let text = r#"exec 5>&-; { echo "$CONTAINER_NAMESPACE $CONTAINER_ID $1"; cat <&3; cat <&4; } >"$2""#;
        let paths = logger(&fixture, text);

        let (mut streams, stdio) = open(&paths, OWNER, &fixture.ports).await.unwrap();
        for (port, line) in [(stdio.stdout, "high\n"), (stdio.stderr, "low\n")] {
            let mut guest = fixture.connect(port);
            guest.write_all(line.as_bytes()).await.unwrap();
        }
        streams.drained(Duration::from_secs(10)).await;

        let log = std::fs::read_to_string(fixture.path("log file")).unwrap();
        assert_eq!(log, "sea tide log\nhigh\nlow\n");
    }

    #[tokio::test]
    async fn a_logger_that_cannot_be_run_is_an_error() {
        let paths = Paths {
            stdout: "binary:///nonexistent?a=b".into(),
            ..Paths::default()
        };
        let error = open(&paths, OWNER, &Ports::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "start the logger /nonexistent");
    }

    #[tokio::test]
    async fn a_file_is_made_with_its_directory_and_appended_to() {
        let fixture = Fixture::new();
        let paths = Paths {
            stdout: format!("file://{}/a.log", fixture.path("logs")),
            ..Paths::default()
        };
        for line in ["high\n", "low\n"] {
            let (mut streams, stdio) = open(&paths, OWNER, &fixture.ports).await.unwrap();
            let mut guest = fixture.connect(stdio.stdout);
            guest.write_all(line.as_bytes()).await.unwrap();
            drop(guest);
            streams.drained(Duration::from_secs(5)).await;
        }
        let log = std::fs::read_to_string(fixture.path("logs/a.log")).unwrap();
        assert_eq!(log, "high\nlow\n");
    }
}
