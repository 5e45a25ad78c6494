//! Processes that stand on the host for those of a container, which are the guest's.
//!
//! A container has one from Create to its end: in the container's network namespace, with the pid that
//! containerd is told. It stands for the container's init. Who asks for the container's processes
//! (`docker top`, which has the host's `ps` look at the pids that it is given) is told of one for each:
//!
//! ```text
//! Pids ──▶ agent: what are they? ──▶ for the init:  its stand-in executes itself with the new arguments
//!                                    for the others: one each, kept while asked about and while theirs runs
//! ```
//! A stand-in is this program again ([`program`]). It has the arguments, the name and the effective user of what
//! it stands for, and does nothing. Its real and saved user are root: on the host nobody else can signal
//! or trace it, whatever user a guest says it is, and none of that user's limits are used up. Rights
//! it has none; the init's can change what it looks like again. All of them end with the shim.

mod figure;
mod further;
pub mod program;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol as agent;
use log::{debug, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::spawn::{Account, Place, spawn_from_thread};
use crate::supervise::Supervised;
use figure::{Figure, Kind};
use further::Further;

/// Whose program a stand-in is.
const PROGRAM: &str = "/proc/self/exe";

/// How long stand-ins may take to look like what they stand for. They go on without.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long those that nobody asks about are kept.
const KEPT: Duration = Duration::from_secs(30);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[error("start a stand-in: {what}")]
pub struct StandInError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// The stand-ins of one container.
#[derive(Debug)]
pub struct StandIns {
    init: Supervised,
    /// Held while all are made to look like what they stand for.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// To tell the init's what it is.
    order: ChildStdin,
    /// A byte each time that it is.
    done: ChildStdout,
    /// Bytes that were not read.
    unread: usize,
    init: Figure,
    further: Further,
    /// When they were last asked about.
    asked: Instant,
}

impl StandIns {
    /// Starts the one for the init of container `id`, whose network is there.
    ///
    /// # Errors
    /// When it cannot be started, or may not be in the namespace.
    pub fn start(
        id: &str,
        network: &Place<'_>,
        account: &Account,
    ) -> Result<Arc<Self>, StandInError> {
        let error = |what| move |source| StandInError { what, source };
        let figure = Figure::of_container(id);
        let mut command = Command::from(command(&figure, Kind::Init));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        (account.open(&mut command)).map_err(error("enter the cgroup"))?;
        let enter = || {
            network
                .enter()
                .map_err(error("enter the network namespace"))
        };
        let mut child = spawn_from_thread(&mut command, enter, error("run this program"))?;
        let missing = || error("its streams")(io::ErrorKind::NotFound.into());
        let order = child.stdin.take().ok_or_else(missing)?;
        let done = child.stdout.take().ok_or_else(missing)?;
        let further = Further::new().map_err(error("make its pipe"))?;
        Ok(Arc::new(Self {
            init: Supervised::new("stand-in", child),
            inner: Mutex::new(Inner {
                order,
                done,
                unread: 1,
                init: figure,
                further,
                asked: Instant::now(),
            }),
        }))
    }

    /// Pid of the init's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.init.pid
    }

    /// Waits until the init's has ended; tells how.
    pub fn ended(&self) -> impl Future<Output = String> + use<> {
        self.init.ended()
    }

    /// Ends all.
    pub async fn end(&self) {
        self.inner.lock().await.further.clear();
        self.init.end(Duration::ZERO).await;
    }

    /// Makes them those of the container's processes, of which `init` is the first one's pid in the guest, and
    /// gives these the pids of their stand-ins. A process that cannot have one is left out.
    pub async fn show(
        self: &Arc<Self>,
        init: u32,
        mut processes: Vec<agent::Process>,
    ) -> Vec<agent::Process> {
        // The guest may say anything.
        processes.truncate(agent::MAX_PROCESSES);
        let mut inner = self.inner.lock().await;
        inner.asked = Instant::now();
        if let Some(process) = processes.iter().find(|process| process.pid == init) {
            inner.show_init(Figure::of(process)).await;
        }
        let others = processes.iter().filter(|process| process.pid != init);
        if let Err(e) = inner.further.show(others).await {
            warn!("show a container's processes: {e}");
        }
        processes.retain_mut(|process| {
            let pid = if process.pid == init {
                Some(self.init.pid)
            } else {
                inner.further.pid(process.pid)
            };
            process.pid = pid.unwrap_or_default();
            pid.is_some()
        });
        self.forget_later();
        processes
    }

    /// Ends those that nobody has asked about for a while.
    fn forget_later(self: &Arc<Self>) {
        let stand_ins = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(KEPT).await;
            if let Some(stand_ins) = stand_ins.upgrade() {
                let mut inner = stand_ins.inner.lock().await;
                if inner.asked.elapsed() >= KEPT {
                    inner.further.clear();
                }
            }
        });
    }
}

/// Starts a process for container `id` that does nothing until it is dropped, or the shim ends: it holds the place of others
/// until these are there.
///
/// # Errors
/// When it cannot be started.
pub fn holder(id: &str) -> io::Result<Child> {
    let mut command = Command::from(command(&Figure::of_container(id), Kind::Further));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// What starts a stand-in, but for its input, with which it ends, and its output, on which it says that it is there.
fn command(figure: &Figure, kind: Kind) -> std::process::Command {
    let mut command = std::process::Command::new(PROGRAM);
    command
        .arg0(figure.arg0())
        .args(figure.further_args())
        .env_clear()
        .env(program::ROLE, figure.role(kind))
        .current_dir("/")
        .stderr(Stdio::null());
    command
}

impl Inner {
    async fn show_init(&mut self, figure: Figure) {
        if figure == self.init {
            return;
        }
        let told = async {
            self.order.write_all(&figure.order()).await?;
            self.unread += 1;
            while self.unread > 0 {
                // One by one: what has come is counted, should this be given up in between.
                self.done.read_exact(&mut [0]).await?;
                self.unread -= 1;
            }
            io::Result::Ok(())
        };
        match timeout(PATIENCE, told).await {
            Ok(Ok(())) => self.init = figure,
            // It has just been killed: then the container ends.
            Ok(Err(e)) => debug!("a stand-in is what it was: {e}"),
            Err(_) => warn!("a stand-in is what it was after {PATIENCE:?}"),
        }
    }
}
