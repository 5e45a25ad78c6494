//! Follows a process in the guest to its end, as if it were a child: its streams are the caller's,
//! signals are passed on, and its exit status becomes this program's.
//!
//! ```text
//! run, exec            this process follows
//! create, run -d, …    a process of its own does, the monitor: its pid is what the caller is told
//! ```
//! conmon waits for the pid that it is told, as its subreaper: so the monitor is started by the
//! process that conmon has started, and ends with the container's exit status. It is in the
//! container's network namespace, where others look for it by that pid.

use std::future::pending;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::args::MonitorArgs;
use super::descriptors;
use super::error::OciError;
use super::folder::Folder;
use super::guard::Guard;
use super::relay::{Pipes, Relay, Streams};
use super::task::Task;
use super::terminal;
use crate::container::LOST;
use crate::error::chain;
use crate::process_identity::ProcessIdentity;
use crate::spawn::{Place, on_moved_thread};

/// What is passed on (signal(7)): all that a process can be sent and catch, but for what tells it of its
/// own children, timers and terminal.
const SIGNALS: [i32; 11] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGPWR,
];

/// A process that is followed.
pub(super) struct Followed {
    task: Task,
    exec_id: String,
    relay: Relay,
    input_ended: oneshot::Receiver<()>,
    signals: mpsc::UnboundedReceiver<u32>,
    /// Where the size of its terminal is to be found, if it has one.
    terminal: Option<(OwnedFd, Signal)>,
    _guard: Guard,
    pipes: Pipes,
}

impl Followed {
    /// Starts to follow a process that is not started yet; the empty `exec_id` is the first one's. `guard` is for
    /// what is to happen should this program be killed.
    pub(super) fn new(
        folder: &Folder,
        task: Task,
        exec_id: &str,
        terminal: bool,
        streams: Streams,
        guard: Guard,
    ) -> Result<Self, OciError> {
        let signals = forwarded()?;
        let terminal = if terminal {
            let clone = streams.output.try_clone();
            let clone = clone.map_err(OciError::kernel("duplicate the terminal"))?;
            Some((clone, listen(SignalKind::window_change())?))
        } else {
            None
        };
        let pipes = Pipes::of(folder, exec_id, terminal.is_some());
        let (relay, input_ended) = Relay::start(&pipes, streams)?;
        Ok(Self {
            task,
            exec_id: exec_id.to_owned(),
            relay,
            input_ended,
            signals,
            terminal,
            _guard: guard,
            pipes,
        })
    }

    /// Follows it to its end; returns its exit status.
    pub(super) async fn until_its_end(mut self) -> u8 {
        self.resize().await;
        let task = self.task.clone();
        let ended = task.wait(&self.exec_id);
        tokio::pin!(ended);
        let mut has_input = true;
        let status = loop {
            // A signal or a size that comes too late is nobody's business.
            tokio::select! {
                ended = &mut ended => break ended.unwrap_or(LOST),
                Some(signal) = self.signals.recv() => {
                    let _ = self.task.kill(&self.exec_id, signal, false).await;
                }
                () = resized(&mut self.terminal) => self.resize().await,
                _ = &mut self.input_ended, if has_input => {
                    has_input = false;
                    let _ = self.task.close_stdin(&self.exec_id).await;
                }
            }
        };
        if !self.exec_id.is_empty() {
            // Closes its streams, even if it has left somebody behind who holds them.
            let _ = self.task.delete(&self.exec_id).await;
            self.pipes.remove();
        }
        self.relay.finish().await;
        u8::try_from(status).unwrap_or(u8::MAX)
    }

    async fn resize(&self) {
        if let Some((terminal, _)) = &self.terminal
            && let Some((width, height)) = terminal::size(terminal.as_fd())
        {
            let _ = self.task.resize(&self.exec_id, width, height).await;
        }
    }
}

async fn resized(terminal: &mut Option<(OwnedFd, Signal)>) {
    match terminal {
        Some((_, signal)) => drop(signal.recv().await),
        None => pending().await,
    }
}

fn listen(kind: SignalKind) -> Result<Signal, OciError> {
    signal(kind).map_err(OciError::kernel("listen to signals"))
}

/// Catches the signals that are passed on.
fn forwarded() -> Result<mpsc::UnboundedReceiver<u32>, OciError> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for number in SIGNALS {
        let mut caught = listen(SignalKind::from_raw(number))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while caught.recv().await.is_some() && sender.send(number.cast_unsigned()).is_ok() {}
        });
    }
    Ok(receiver)
}

/// Has a monitor follow the process; returns once it does. `network` is a process in the network
/// namespace that the monitor is to be in.
pub(super) fn detach(
    folder: &Folder,
    exec_id: &str,
    terminal: bool,
    streams: &Streams,
    network: Option<u32>,
) -> Result<ProcessIdentity, OciError> {
    let program = std::env::current_exe().map_err(OciError::kernel("find this program"))?;
    let root = folder.path().parent().unwrap_or(Path::new("/"));
    let (ours, theirs) = UnixStream::pair().map_err(OciError::kernel("make a socket"))?;
    let mut command = Command::new(&program);
    command.args(["oci", "--root"]).arg(root).arg("monitor");
    if terminal {
        command.arg("--terminal");
    }
    if !exec_id.is_empty() {
        command.args(["--exec", exec_id]);
    }
    command
        .arg(&folder.id)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut spawn = || command.spawn().map_err(OciError::file("run", &program));
    let child = match network.map(|pid| format!("/proc/{pid}/ns/net")) {
        None => spawn(),
        Some(path) => on_moved_thread(
            || {
                let entered = Place::At(path.as_ref()).enter();
                entered.map_err(OciError::file("enter the network namespace", &path))
            },
            &mut spawn,
        ),
    };
    let pid = child?.id();
    // Its end of the socket would keep it from being told that the monitor has ended.
    drop(command);
    let fds = [&streams.input, &streams.output, &streams.error].map(AsFd::as_fd);
    descriptors::send(&ours, b".", &fds)
        .map_err(OciError::kernel("give the monitor its streams"))?;
    let mut answer = String::new();
    let read = BufReader::new(ours).read_line(&mut answer);
    read.map_err(OciError::kernel("wait for the monitor"))?;
    match (answer.as_str(), ProcessIdentity::of(pid)) {
        ("\n", Some(process)) => Ok(process),
        (said, _) => Err(OciError::Task(format!(
            "the monitor ended: {}",
            said.trim()
        ))),
    }
}

/// What a monitor does; returns the exit status of what it has followed.
pub(super) async fn run(root: &Path, args: &MonitorArgs) -> Result<u8, OciError> {
    let error = || OciError::kernel("take what is to be followed");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(error())?;
    let mut socket = UnixStream::from(socket);
    let followed = take_over(root, args, &socket).await;
    let answer = match &followed {
        Ok(_) => String::new(),
        Err(e) => chain(e),
    };
    writeln!(socket, "{answer}").map_err(error())?;
    drop(socket);
    Ok(followed?.until_its_end().await)
}

async fn take_over(
    root: &Path,
    args: &MonitorArgs,
    socket: &UnixStream,
) -> Result<Followed, OciError> {
    let received = descriptors::receive(socket, &mut [0]);
    let (_, fds) = received.map_err(OciError::kernel("take the streams"))?;
    let [input, output, error] = <[_; 3]>::try_from(fds)
        .map_err(|_| OciError::Refused("a monitor is given three streams".to_owned()))?;
    if args.terminal {
        terminal::adopt(output.as_fd())?;
    }
    let folder = Folder::open(root, &args.id)?;
    let task = Task::connect(&folder).await.ok_or(OciError::NotRunning)?;
    let streams = Streams {
        input,
        output,
        error,
    };
    let exec_id = args.exec.as_deref().unwrap_or_default();
    let guard = Guard::start(&folder, exec_id, false)?;
    Followed::new(&folder, task, exec_id, args.terminal, streams, guard)
}
