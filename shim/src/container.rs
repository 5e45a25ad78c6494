//! A container and its processes, as the host knows them.
//!
//! ```text
//! Created ──Start──▶ Running ──exit event──▶ Stopped
//!    └──────Kill (never started), machine gone──────▲
//! ```
//! A process's state is behind a lock that Start holds until its event is published: an exit event
//! that overtakes the agent's answer waits for it, so Start comes before Exit, however fast it ends.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, watch};

use crate::error::TaskError;
use crate::hooks::{Hooks, Subject};
use crate::state_dir::StateDir;
use crate::stdio::{Paths, Streams};

/// Exit status of a process whose machine ended under it: as if it had been killed.
pub const LOST: u32 = 137;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is set up and waits for Start.
    Created,
    /// It runs.
    Running,
    /// It is over.
    Stopped(Exit),
}

/// One process: a container's init, or a further one.
#[derive(Debug)]
pub struct Process {
    /// What to start; empty for an init.
    pub exec_id: String,
    /// Its streams' names.
    pub paths: Paths,
    /// See the module's description.
    pub state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
    /// When SIGKILL was first asked for.
    killed: OnceLock<Instant>,
    /// Whether the guest has said that it ended.
    end_said: AtomicBool,
    /// How it ended by the guest's account, while its machine is being ended.
    last_word: OnceLock<Exit>,
    /// Guards the streams' handles, for one call; never held across a wait.
    streams: StdMutex<Option<Streams>>,
    /// Pid as containerd is told; known from Create for an init, from Start for others.
    pid: StdMutex<u32>,
}

impl Process {
    /// A process that is set up.
    #[must_use]
    pub fn new(exec_id: &str, paths: Paths, streams: Streams, pid: u32) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            paths,
            state: Mutex::new(State::Created),
            exit: watch::Sender::new(None),
            killed: OnceLock::new(),
            end_said: AtomicBool::new(false),
            last_word: OnceLock::new(),
            streams: StdMutex::new(Some(streams)),
            pid: StdMutex::new(pid),
        }
    }

    /// Its pid; 0 before it has one.
    #[must_use]
    pub fn pid(&self) -> u32 {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has a pid now.
    pub fn set_pid(&self, pid: u32) {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Notes that SIGKILL is asked for; tells whether it is for the first time.
    pub fn note_killed(&self) -> bool {
        self.killed.set(Instant::now()).is_ok()
    }

    /// Whether SIGKILL was asked for, that long ago or longer.
    #[must_use]
    pub fn was_killed(&self, ago: Duration) -> bool {
        self.killed.get().is_some_and(|at| at.elapsed() >= ago)
    }

    /// Notes that the guest says it has ended; tells whether it does so for the first time.
    pub fn note_end_said(&self) -> bool {
        !self.end_said.swap(true, Ordering::Relaxed)
    }

    /// Notes how it ended, which [`Process::stop`] makes known.
    pub fn note_last_word(&self, exit: Exit) {
        let _ = self.last_word.set(exit);
    }

    /// What was noted.
    #[must_use]
    pub fn last_word(&self) -> Option<Exit> {
        self.last_word.get().copied()
    }

    /// Waits until all its output is where it belongs.
    pub fn flushed(&self) -> impl Future<Output = ()> + use<> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = streams.as_ref().map(Streams::flushed);
        async move {
            if let Some(flushed) = flushed {
                flushed.await;
            }
        }
    }

    /// Waits until it is over.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        // The sender is a field of `self`, so it cannot go away first.
        ended.ok().and_then(|exit| *exit).unwrap_or(Exit {
            status: LOST,
            at: SystemTime::now(),
        })
    }

    /// Makes it over; `false` when it has been already.
    pub fn stop(&self, state: &mut State, exit: Exit) -> bool {
        if matches!(state, State::Stopped(_)) {
            return false;
        }
        *state = State::Stopped(exit);
        self.exit.send_replace(Some(exit));
        true
    }

    /// It is started: its input stays open until it is closed.
    pub fn hold_stdin(&self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = &mut *streams {
            streams.hold_stdin();
        }
    }

    /// Ends its input after what is in the pipe.
    pub fn close_stdin(&self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = &mut *streams {
            streams.close_stdin();
        }
    }

    /// Takes its streams, to drain and then drop them.
    #[must_use]
    pub fn take_streams(&self) -> Option<Streams> {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A container: its init and the processes added to it.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Where the snapshotter's mounts are, if it gave any: what is there otherwise is the engine's.
    pub mounts: Option<PathBuf>,
    /// The folder of what was made for it on the host.
    pub state: StateDir,
    /// Its first process.
    pub init: Arc<Process>,
    /// Pid of that in the guest.
    pub init_in_guest: u32,
    execs: HashMap<String, Arc<Process>>,
    /// Whether it stands still.
    pub paused: bool,
    /// What runs on the host when it is started, and when it is gone.
    pub hooks: Hooks,
}

impl Container {
    /// A container that was created.
    #[must_use]
    pub fn new(id: &str, bundle: PathBuf, state: StateDir, init: Process) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            mounts: None,
            state,
            init: Arc::new(init),
            init_in_guest: 0,
            execs: HashMap::new(),
            paused: false,
            hooks: Hooks::default(),
        }
    }

    /// What its hooks are told of it.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            pid: self.init.pid(),
        }
    }

    /// Finds a process; the empty name is the init's.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs.get(exec_id).cloned();
        found.ok_or_else(|| TaskError::NotFound(format!("process {exec_id}")))
    }

    /// Adds a process.
    ///
    /// # Errors
    /// When there is one of that name.
    pub fn add(&mut self, process: Process) -> Result<(), TaskError> {
        self.admits(&process.exec_id)?;
        self.execs
            .insert(process.exec_id.clone(), Arc::new(process));
        Ok(())
    }

    /// Whether a process of that name may be added.
    ///
    /// # Errors
    /// When there is one of that name.
    pub fn admits(&self, exec_id: &str) -> Result<(), TaskError> {
        if exec_id.is_empty() || self.execs.contains_key(exec_id) {
            return Err(TaskError::Exists(format!("process {exec_id}")));
        }
        Ok(())
    }

    /// Forgets a process.
    pub fn forget(&mut self, exec_id: &str) {
        self.execs.remove(exec_id);
    }

    /// All its processes, the init last: the others end with it.
    #[must_use]
    pub fn processes(&self) -> Vec<Arc<Process>> {
        self.execs.values().chain([&self.init]).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        let process = Process::new("", Paths::default(), Streams::default(), 7);
        let state = StateDir::at("/run/hull".as_ref(), "default", "tide").unwrap();
        Container::new("tide", "/bundle".into(), state, process)
    }

    fn exit(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_process_ends_once_and_keeps_its_first_status() {
        let process = Process::new("a", Paths::default(), Streams::default(), 0);
        let mut state = process.state.lock().await;
        assert!(process.stop(&mut state, exit(3)));
        assert!(!process.stop(&mut state, exit(LOST)));
        assert_eq!(
            (process.wait().await, process.exit()),
            (exit(3), Some(exit(3)))
        );
    }

    #[test]
    fn names_are_unique_and_the_empty_one_is_the_inits() {
        let mut container = container();
        let add = |container: &mut Container, id: &str| {
            container.add(Process::new(id, Paths::default(), Streams::default(), 0))
        };
        add(&mut container, "a").unwrap();
        assert!(matches!(
            add(&mut container, "a"),
            Err(TaskError::Exists(_))
        ));
        assert!(matches!(add(&mut container, ""), Err(TaskError::Exists(_))));
        assert_eq!(container.process("").unwrap().pid(), 7);
        assert_eq!(container.processes().len(), 2);
        container.forget("a");
        assert!(matches!(
            container.process("a"),
            Err(TaskError::NotFound(_))
        ));
    }
}
