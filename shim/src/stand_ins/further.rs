//! Stand-ins for processes that are no init: each is started as what it is, and ends when that changes.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use agent_protocol as agent;
use log::{debug, warn};
use nix::fcntl::OFlag;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::figure::{Figure, Kind};
use super::{PATIENCE, command};

/// Those of one container, by their process in the guest.
#[derive(Debug)]
pub(super) struct Further {
    stand_ins: HashMap<u32, StandIn>,
    /// Input of all: it ends when the shim does, who has the other end.
    alive: OwnedFd,
    _shim: OwnedFd,
}

/// One of them. It ends when this is dropped.
#[derive(Debug)]
struct StandIn {
    /// When the process in the guest did.
    started: u64,
    figure: Figure,
    child: Child,
}

impl Further {
    /// None yet.
    pub(super) fn new() -> io::Result<Self> {
        let (alive, shim) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self {
            stand_ins: HashMap::new(),
            alive,
            _shim: shim,
        })
    }

    /// Pid of the one that stands for a process.
    pub(super) fn pid(&self, process: u32) -> Option<u32> {
        Some(self.stand_ins.get(&process)?.child.id())
    }

    /// Ends all.
    pub(super) fn clear(&mut self) {
        self.stand_ins.clear();
    }

    /// Keeps those that are right, ends the others, and starts those that are missing.
    ///
    /// # Errors
    /// The first that cannot be started; those before it are there.
    pub(super) async fn show(
        &mut self,
        processes: impl Iterator<Item = &agent::Process>,
    ) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.stand_ins);
        let (done, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut started = Vec::new();
        for process in processes {
            let figure = Figure::of(process);
            let right = |known: &StandIn| {
                known.started == process.started && known.figure == figure && known.is_there()
            };
            let known = before.remove(&process.pid).filter(right);
            let stand_in = if let Some(known) = known {
                known
            } else {
                // Hundreds take a while; others are served between two.
                yield_now().await;
                started.push(process.pid);
                StandIn {
                    started: process.started,
                    child: start(&figure, &self.alive, &report)?,
                    figure,
                }
            };
            self.stand_ins.insert(process.pid, stand_in);
        }
        // Theirs are the only ones that are left.
        drop(report);
        let mut done = pipe::Receiver::from_owned_fd(done)?;
        let mut expected = vec![0; started.len()];
        match timeout(PATIENCE, done.read_exact(&mut expected)).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => debug!("some stand-ins have ended: {e}"),
            Err(_) => warn!("some stand-ins do not look right after {PATIENCE:?}"),
        }
        self.zombies_end(&started).await;
        Ok(())
    }

    /// A zombie's reports while it is about to end.
    async fn zombies_end(&self, pids: &[u32]) {
        let deadline = Instant::now() + PATIENCE;
        let stand_ins = pids.iter().filter_map(|pid| self.stand_ins.get(pid));
        for zombie in stand_ins.filter(|stand_in| stand_in.figure.zombie) {
            while !zombie.has_ended() && Instant::now() < deadline {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

impl StandIn {
    fn is_there(&self) -> bool {
        self.figure.zombie || !self.has_ended()
    }

    fn has_ended(&self) -> bool {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else {
            return true;
        };
        // It stays a zombie, if it is one.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Fails only if it has been waited for; a killed one that does nothing ends at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(figure: &Figure, alive: &OwnedFd, report: &OwnedFd) -> io::Result<Child> {
    let kind = if figure.zombie {
        Kind::Zombie
    } else {
        Kind::Further
    };
    command(figure, kind)
        .stdin(Stdio::from(alive.try_clone()?))
        .stdout(Stdio::from(report.try_clone()?))
        .spawn()
}
