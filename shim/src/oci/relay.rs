//! A process's streams: between named pipes, which the shim knows, and descriptors, which the caller
//! has given.
//!
//! ```text
//! caller's input ─▶ thread ─▶ stdin ─▶ shim          shim ─▶ stdout, stderr ─▶ threads ─▶ caller's
//! ```
//! A descriptor may be anything: a pipe, a file, a terminal, a socket. So each has a thread that waits
//! for it; the input's is left behind when the process is over.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::libc;
use nix::sys::stat::Mode;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::sync::oneshot;

use super::error::OciError;
use super::folder::Folder;
use crate::stdio::Paths;

/// Bytes copied at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// The named pipes of a process.
#[derive(Debug, Clone)]
pub(super) struct Pipes {
    stdin: PathBuf,
    stdout: PathBuf,
    /// None with a terminal.
    stderr: Option<PathBuf>,
}

impl Pipes {
    /// Names the pipes of a process; the empty `exec_id` is the first one's.
    pub(super) fn of(folder: &Folder, exec_id: &str, terminal: bool) -> Self {
        let prefix = match exec_id {
            "" => String::new(),
            id => format!("{id}-"),
        };
        let path = |name: &str| folder.path().join(format!("{prefix}{name}"));
        Self {
            stdin: path("stdin"),
            stdout: path("stdout"),
            stderr: (!terminal).then(|| path("stderr")),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.stdin, &self.stdout].into_iter().chain(&self.stderr)
    }

    pub(super) fn make(&self) -> Result<(), OciError> {
        self.all().try_for_each(|path| {
            let made = nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR);
            made.map_err(|e| OciError::file("make", path)(e.into()))
        })
    }

    pub(super) fn remove(&self) {
        for path in self.all() {
            let _ = std::fs::remove_file(path);
        }
    }

    /// The same, for the shim.
    pub(super) fn paths(&self) -> Paths {
        let text = |path: &PathBuf| path.display().to_string();
        Paths {
            stdin: text(&self.stdin),
            stdout: text(&self.stdout),
            stderr: self.stderr.as_ref().map(text).unwrap_or_default(),
            terminal: self.stderr.is_none(),
        }
    }
}

/// What the caller has given.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) error: OwnedFd,
}

impl Streams {
    /// This process's own.
    pub(super) fn own() -> Result<Self, OciError> {
        let error = || OciError::kernel("duplicate a standard stream");
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned().map_err(error())?,
            output: io::stdout().as_fd().try_clone_to_owned().map_err(error())?,
            error: io::stderr().as_fd().try_clone_to_owned().map_err(error())?,
        })
    }
}

/// Streams that are copied.
#[derive(Debug)]
pub(super) struct Relay {
    outputs: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts to copy; also tells when the input has ended. The shim has the pipes open.
    pub(super) fn start(
        pipes: &Pipes,
        streams: Streams,
    ) -> Result<(Self, oneshot::Receiver<()>), OciError> {
        let to = open(&pipes.stdin, OpenOptions::new().write(true))?;
        let from = open(&pipes.stdout, OpenOptions::new().read(true))?;
        let mut outputs = vec![thread::spawn(move || copy(from, streams.output))];
        if let Some(path) = &pipes.stderr {
            let from = open(path, OpenOptions::new().read(true))?;
            outputs.push(thread::spawn(move || copy(from, streams.error)));
        }
        let (ended, input_ended) = oneshot::channel();
        thread::spawn(move || {
            copy(File::from(streams.input), to.into());
            // Nobody asks when the process is over.
            let _ = ended.send(());
        });
        Ok((Self { outputs }, input_ended))
    }

    /// Waits until all output is where it belongs. The process is over, and so are its streams.
    pub(super) async fn finish(self) {
        let joined = tokio::task::spawn_blocking(|| {
            for output in self.outputs {
                // A copy does not panic.
                let _ = output.join();
            }
        });
        let _ = joined.await;
    }
}

/// Opens a pipe whose other end is open: does not wait for it.
fn open(path: &Path, how: &mut OpenOptions) -> Result<File, OciError> {
    let opened = how
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|pipe| {
            let flags = fcntl_getfl(&pipe)?;
            fcntl_setfl(&pipe, flags - OFlags::NONBLOCK)?;
            Ok(pipe)
        });
    opened.map_err(OciError::file("open", path))
}

/// Copies until the end of `from`. When nobody takes the bytes any more the rest is thrown away, so
/// that the process does not stand still.
fn copy(mut from: File, to: OwnedFd) {
    let mut to = Some(File::from(to));
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => length,
            Err(e) if wait(&e, &from, PollFlags::IN) => continue,
            // A terminal that its master has left.
            Err(_) => return,
        };
        if let Some(file) = &mut to
            && write(file, &chunk[..length]).is_err()
        {
            to = None;
        }
    }
}

fn write(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(e) if wait(&e, to, PollFlags::OUT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether it is worth trying again: waits first, if whoever gave the descriptor has made it one
/// that does not.
fn wait(error: &io::Error, file: &File, what: PollFlags) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted => true,
        io::ErrorKind::WouldBlock => poll(&mut [PollFd::new(file, what)], None).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &Path) -> Folder {
        Folder::create(root, "tide", "/b".as_ref(), false).unwrap()
    }

    #[test]
    fn a_terminal_has_two_pipes_and_an_exec_its_own() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path());
        let (init, exec) = (Pipes::of(&folder, "", false), Pipes::of(&folder, "e", true));
        init.make().unwrap();
        exec.make().unwrap();
        assert_eq!(exec.paths().stderr, "");
        assert!(exec.paths().terminal && !init.paths().terminal);
        assert!(exec.paths().stdout.ends_with("/tide/e-stdout"));
        let count = || std::fs::read_dir(folder.path()).unwrap().count();
        let with_both = count();
        exec.remove();
        assert_eq!(count(), with_both - 2);
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_ends_are_told() {
        let root = tempfile::tempdir().unwrap();
        let pipes = Pipes::of(&folder(root.path()), "", false);
        pipes.make().unwrap();
        // As the shim has them.
        let both = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
        };
        let mut shim_in = open(&pipes.stdin, OpenOptions::new().read(true)).unwrap();
        let mut shim_out = both(&pipes.stdout);
        let shim_err = both(pipes.stderr.as_ref().unwrap());
        let (input, mut typed) = io::pipe().unwrap();
        let (mut shown, output) = io::pipe().unwrap();
        let (_, unread) = io::pipe().unwrap();
        let streams = Streams {
            input: input.into(),
            output: output.into(),
            error: unread.into(),
        };
        let (relay, input_ended) = Relay::start(&pipes, streams).unwrap();

        typed.write_all(b"high").unwrap();
        drop(typed);
        input_ended.await.unwrap();
        let mut read = String::new();
        shim_in.read_to_string(&mut read).unwrap();
        shim_out.write_all(b"low").unwrap();
        // Nobody reads this one: it is thrown away.
        (&shim_err).write_all(&vec![0; 3 * CHUNK]).unwrap();
        drop((shim_out, shim_err));
        relay.finish().await;

        assert_eq!(read, "high");
        let mut read = String::new();
        shown.read_to_string(&mut read).unwrap();
        assert_eq!(read, "low");
    }
}
