//! What can be done with the containers of one shim: everything the task service offers, in this
//! project's own terms.
//!
//! ```text
//! nobody ──create──▶ machine, container ──create──▶ machine, containers
//!   ▲                    │ the last init is over, or deleted: the machine is ended
//!   └──delete of each────┴──▶ containers that are over
//! ```
//! Create and Delete take turns; whatever else is asked looks things up in `members` and waits for
//! nothing but the agent. Each event is published where the change it tells of is made.

mod create;
mod delete;
mod follow;
mod host_network;
mod members;
mod on_host;
mod start;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use agent_protocol::{self as agent, AgentClient};
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::events::task as event;
use log::warn;
use oci_spec::runtime::LinuxMemory;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{Mutex, Notify};
use ttrpc::context::Context;

use self::members::Members;
use crate::bundle;
use crate::container::{Process, State};
use crate::error::{TaskError, chain};
use crate::events::{Events, TaskEvent};
use crate::instance::Instance;
use crate::ports::Ports;
use crate::stats;
use crate::stdio::{self, Owner, Paths};

/// How long the agent may take to answer. It is the guest's, so that nothing may hang on it.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to list processes: containerd asks when it is started again, and waits for each answer.
const PIDS_PATIENCE: Duration = Duration::from_secs(4);

/// signal(7).
const SIGKILL: u32 = 9;

type Result<T> = std::result::Result<T, TaskError>;

/// The containers of one shim, and what is done with them.
#[derive(Clone)]
pub struct Runtime(Arc<Core>);

struct Core {
    namespace: String,
    id: String,
    /// Where this shim listens.
    address: String,
    /// Whose it is.
    instance: Instance,
    events: Events,
    shutdown: Arc<Notify>,
    /// Create and Delete hold it to their end.
    turn: Mutex<()>,
    /// Who there is; held for one look-up or change, never across a wait.
    members: StdMutex<Members>,
}

/// What State answers.
pub struct Status {
    /// The container's bundle.
    pub bundle: PathBuf,
    /// The process.
    pub process: Arc<Process>,
    /// What it does.
    pub state: State,
    /// Whether its container stands still.
    pub paused: bool,
}

impl Runtime {
    /// A runtime without a container, for the shim of sandbox `id` that listens at `address`, and is `instance`'s.
    /// `shutdown` is notified when the shim is to end.
    #[must_use]
    pub fn new(
        namespace: &str,
        id: &str,
        address: &str,
        instance: Instance,
        events: Events,
        shutdown: Arc<Notify>,
    ) -> Self {
        Self(Arc::new(Core {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            address: address.to_owned(),
            instance,
            events,
            shutdown,
            turn: Mutex::new(()),
            members: StdMutex::default(),
        }))
    }

    /// Looks a process up.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.members().container(id)?.process(exec_id)
    }

    /// Tells what a process does.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn status(&self, id: &str, exec_id: &str) -> Result<Status> {
        let mut members = self.members();
        let container = members.container(id)?;
        let process = container.process(exec_id)?;
        let state = match (process.exit(), process.state.try_lock()) {
            (Some(exit), _) => State::Stopped(exit),
            (None, Ok(state)) => *state,
            // A Start that is under way has not happened yet.
            (None, Err(_)) => State::Created,
        };
        Ok(Status {
            bundle: container.bundle.clone(),
            process,
            state,
            paused: container.paused,
        })
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    /// [`TaskError::Finished`] when it is over; what the agent says otherwise.
    pub async fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let (process, agent) = self.live(id, exec_id)?;
        if signal == SIGKILL && exec_id.is_empty() {
            self.insist(id, process);
        }
        let request = agent::SignalRequest {
            process: MessageField::some(process_id(id, exec_id)),
            signal,
            all,
            ..Default::default()
        };
        agent.signal(patience(), &request).await?;
        Ok(())
    }

    /// Sets the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// When it is over, or has no terminal.
    pub async fn resize(&self, id: &str, exec_id: &str, width: u32, height: u32) -> Result<()> {
        let (_, agent) = self.live(id, exec_id)?;
        let request = agent::ResizeRequest {
            process: MessageField::some(process_id(id, exec_id)),
            width,
            height,
            ..Default::default()
        };
        agent.resize(patience(), &request).await?;
        Ok(())
    }

    /// Lists the container's processes, by the pids of those that stand for them on the host. Of a guest that does not
    /// answer, or leaves it out, the init alone is known: containerd gives up a container without any when it is
    /// started again, and its machine would go on with nobody to end it.
    ///
    /// # Errors
    /// When it is over.
    pub async fn pids(&self, id: &str) -> Result<Vec<agent::Process>> {
        let (_, agent) = self.live(id, "")?;
        let (init, stand_ins) = {
            let mut members = self.members();
            let init = members.container(id)?.init_in_guest;
            (init, members.stand_ins(id).ok_or(TaskError::Finished)?)
        };
        let context = ttrpc::context::with_duration(PIDS_PATIENCE);
        let mut processes = match agent.pids(context, &container_id(id)).await {
            Ok(answer) => answer.processes,
            Err(e) => {
                warn!(
                    "the guest does not list its processes: {}",
                    TaskError::from(e)
                );
                Vec::new()
            }
        };
        processes = stand_ins.show(init, processes).await;
        if !processes.iter().any(|it| it.pid == stand_ins.pid()) {
            processes.push(agent::Process {
                pid: stand_ins.pid(),
                ..Default::default()
            });
        }
        Ok(processes)
    }

    /// Reads the container's figures.
    ///
    /// # Errors
    /// When it is over.
    pub async fn stats(&self, id: &str) -> Result<Metrics> {
        let (_, agent) = self.live(id, "")?;
        let mut answer = agent.stats(patience(), &container_id(id)).await?;
        // The guest knows of its block devices only: files are virtiofsd's to read and write.
        let group = self.members().group_of(id);
        if let Some(io) = group.and_then(|group| group.io()) {
            answer.files.insert("io.stat".to_owned(), io);
        }
        Ok(stats::metrics(&answer.files))
    }

    /// Changes the container's limits to those of an OCI `linux.resources` object.
    ///
    /// # Errors
    /// When it is over, or the kernel refuses.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let (_, agent) = self.live(id, "")?;
        let asked = bundle::read_resources(resources);
        let asked = asked.map_err(|e| TaskError::Invalid(chain(&e)))?;
        let request = agent::UpdateRequest {
            container_id: id.to_owned(),
            resources: resources.to_owned(),
            ..Default::default()
        };
        agent.update(patience(), &request).await?;
        let sandbox = Arc::clone(self.members().sandbox()?);
        let memory = asked.memory().as_ref();
        if let Some(limit) = memory.and_then(LinuxMemory::limit) {
            sandbox.memory.limit(id, Some(limit));
        }
        // The group is that of the machine's first container.
        if let Some(cgroup) = &sandbox.account.cgroup
            && id == self.0.id
        {
            cgroup.weigh(&asked).await;
        }
        Ok(())
    }

    /// Makes the container stand still.
    ///
    /// # Errors
    /// When it is over.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let (_, agent) = self.live(id, "")?;
        agent.pause(patience(), &container_id(id)).await?;
        self.members().container(id)?.paused = true;
        self.publish(TaskEvent::Paused(event::TaskPaused {
            container_id: id.to_owned(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is over.
    pub async fn resume(&self, id: &str) -> Result<()> {
        let (_, agent) = self.live(id, "")?;
        agent.resume(patience(), &container_id(id)).await?;
        self.members().container(id)?.paused = false;
        self.publish(TaskEvent::Resumed(event::TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Ends the shim, unless it still has a container: containerd asks after every Delete.
    pub fn shut_down(&self) {
        if self.members().is_empty() {
            self.0.shutdown.notify_one();
        }
    }

    /// Looks a process up that is not over, with the agent to ask about it.
    fn live(&self, id: &str, exec_id: &str) -> Result<(Arc<Process>, AgentClient)> {
        let mut members = self.members();
        let process = members.container(id)?.process(exec_id)?;
        if process.exit().is_some() || process.last_word().is_some() {
            return Err(TaskError::Finished);
        }
        Ok((process, members.sandbox()?.agent.clone()))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        let locked = self.0.members.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, event: TaskEvent) {
        self.0.events.publish(event);
    }
}

/// Has a thread of its own do what may wait for a file system: one that does not answer holds up whoever asked for
/// it, and no other container's streams, signals and ports.
async fn blocking<T: Send + 'static, E: std::error::Error + Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, E> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| TaskError::failed(&e))?
        .map_err(|e| TaskError::failed(&e))
}

fn patience() -> Context {
    ttrpc::context::with_duration(AGENT_PATIENCE)
}

fn process_id(id: &str, exec_id: &str) -> agent::ProcessId {
    agent::ProcessId {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    }
}

fn container_id(id: &str) -> agent::ContainerId {
    agent::ContainerId {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(at.into())
}

async fn open_streams(
    paths: &Paths,
    owner: Owner<'_>,
    ports: &Ports,
) -> Result<(stdio::Streams, agent::Stdio)> {
    let opened = stdio::open(paths, owner, ports).await;
    opened.map_err(|e| TaskError::failed(&e))
}
