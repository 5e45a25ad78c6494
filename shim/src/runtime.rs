//! What can be done with the container of one shim: everything the task service offers, in this
//! project's own terms.
//!
//! ```text
//! Empty ──create──▶ Live ──delete: the machine is ended──▶ Removing ──all is undone──▶ Empty
//! ```
//! Create and Delete take turns; whatever else is asked looks things up in the slot and waits for
//! nothing but the agent. Each event is published where the change it tells of is made.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agent_protocol::{self as agent, AgentClient, SHARE_PATH};
use containerd_shim::protos::api::{CreateTaskRequest, ExecProcessRequest};
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::events::task as event;
use log::{info, warn};
use oci_spec::runtime::Spec;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{Mutex, Notify};
use ttrpc::context::Context;

use crate::bundle::{self, Guest};
use crate::cleanup;
use crate::config::Config;
use crate::container::{Container, Exit, LOST, Process, State};
use crate::error::{TaskError, chain};
use crate::events::{Events, TaskEvent};
use crate::ports::Ports;
use crate::sandbox::{Plan, Sandbox};
use crate::state_dir::StateDir;
use crate::stdio::{self, Paths};
use crate::{rootfs, stats};

/// How long Delete waits for output that is still on its way.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// How long the agent may take to answer. It is the guest's, so that nothing may hang on it.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);

/// The same where the machine ends anyway.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the machine's own end may take to be noticed after the agent's connection has ended.
const REASON_PATIENCE: Duration = Duration::from_secs(1);

/// A guest may say as often as it likes that it is out of memory; containerd hears it this often.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// Memory of the machine beyond the container's limit, for the guest's kernel and agent.
const OVERHEAD_MIB: u64 = 128;

type Result<T> = std::result::Result<T, TaskError>;

/// The container of one shim, and what is done with it.
#[derive(Clone)]
pub struct Runtime(Arc<Core>);

struct Core {
    namespace: String,
    id: String,
    events: Events,
    shutdown: Arc<Notify>,
    /// Create and Delete hold it to their end.
    turn: Mutex<()>,
    /// What there is; held for one look-up or change, never across a wait.
    slot: StdMutex<Slot>,
}

/// See the module's description.
enum Slot {
    Empty,
    Live {
        container: Container,
        sandbox: Sandbox,
    },
    Removing(Container),
}

impl Slot {
    fn container(&mut self, id: &str) -> Result<&mut Container> {
        match self {
            Self::Live { container, .. } | Self::Removing(container) if container.id == id => {
                Ok(container)
            }
            _ => Err(TaskError::NotFound(format!("container {id}"))),
        }
    }

    fn sandbox(&self) -> Result<&Sandbox> {
        match self {
            Self::Live { sandbox, .. } => Ok(sandbox),
            _ => Err(TaskError::Precondition(
                "the virtual machine is gone".into(),
            )),
        }
    }
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
    /// A runtime without a container. `shutdown` is notified when the shim is to end.
    #[must_use]
    pub fn new(namespace: &str, id: &str, events: Events, shutdown: Arc<Notify>) -> Self {
        Self(Arc::new(Core {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            events,
            shutdown,
            turn: Mutex::new(()),
            slot: StdMutex::new(Slot::Empty),
        }))
    }

    /// Boots a machine and creates the container in it; returns its pid.
    ///
    /// # Errors
    /// When it cannot be created; nothing of it is left then.
    pub async fn create(&self, request: &CreateTaskRequest) -> Result<u32> {
        let _turn = self.0.turn.lock().await;
        if !matches!(*self.slot(), Slot::Empty) {
            return Err(TaskError::Exists(format!("container {}", self.0.id)));
        }
        if request.id != self.0.id {
            return Err(TaskError::Invalid(format!(
                "this shim runs container {}, not {}",
                self.0.id, request.id
            )));
        }
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unimplemented("restoring a checkpoint"));
        }
        let created = self.create_container(request).await;
        let (sandbox, container) = created.inspect_err(|_| {
            let mounted = PathBuf::from(&request.bundle).join("rootfs");
            if let Err(e) = rootfs::unmount(&mounted) {
                warn!("clean up after a failed create: {}", chain(&e));
            }
        })?;
        let pid = sandbox.pid();
        let (agent, gone) = (sandbox.agent.clone(), sandbox.gone.clone());
        *self.slot() = Slot::Live { container, sandbox };
        self.publish(TaskEvent::Create(created_event(request, pid)));

        let (runtime, told) = (self.clone(), gone.clone());
        tokio::spawn(async move {
            runtime.follow(agent).await;
            // The machine's own reason is the better one.
            tokio::time::sleep(REASON_PATIENCE).await;
            told.tell("the agent closed its connection".to_owned());
        });
        let runtime = self.clone();
        tokio::spawn(async move { runtime.machine_ended(&gone.reason().await).await });
        Ok(pid)
    }

    async fn create_container(&self, request: &CreateTaskRequest) -> Result<(Sandbox, Container)> {
        let config = Config::load().map_err(|e| TaskError::failed(&e))?;
        let bundle = PathBuf::from(&request.bundle);
        let spec = bundle::load(&bundle).map_err(|e| TaskError::Invalid(chain(&e)))?;
        let root = bundle::host_root(&spec, &bundle, !request.rootfs.is_empty());
        let memory_mib = memory_mib(config.memory_mib, &spec);
        let guest = bundle::translate(spec, &request.id, SHARE_PATH.as_ref())
            .map_err(|e| TaskError::Invalid(e.to_string()))?;

        let state = StateDir::at(&config.state, &self.0.namespace, &request.id)
            .map_err(|e| TaskError::failed(&e))?;
        state.create().map_err(|e| TaskError::failed(&e))?;
        let shared = rootfs::mount(&request.rootfs, &bundle.join("rootfs"))
            .and_then(|()| rootfs::share(&state, &request.id, &root, &guest.volumes));
        if let Err(error) = shared {
            if let Err(e) = state.remove() {
                warn!("clean up after a failed mount: {}", chain(&e));
            }
            return Err(TaskError::failed(&error));
        }
        let plan = Plan {
            config: &config,
            state: state.clone(),
            memory_mib,
            network: guest.network_namespace.as_deref(),
        };
        let sandbox = Sandbox::boot(plan).await.map_err(|e| match e.hint() {
            Some(hint) => TaskError::Failed(format!("{}; {hint}", chain(&e))),
            None => TaskError::failed(&e),
        })?;
        match create_in(&sandbox, request, &guest).await {
            Ok(init) => Ok((sandbox, Container::new(&request.id, bundle, state, init))),
            Err(error) => {
                if let Err(e) = sandbox.shut_down().await {
                    warn!("clean up after a failed create: {}", chain(&e));
                }
                Err(error)
            }
        }
    }

    /// Starts a process that was created or added; returns its pid.
    ///
    /// # Errors
    /// When it does not exist, has been started, or its program cannot be run.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32> {
        let (process, agent) = self.live(id, exec_id)?;
        let mut state = process.state.lock().await;
        match *state {
            State::Created => {}
            State::Running => return Err(TaskError::Precondition("already started".into())),
            State::Stopped(_) => return Err(TaskError::Finished),
        }
        let started = agent.start(patience(), &process_id(id, exec_id)).await?;
        *state = State::Running;
        if exec_id.is_empty() {
            self.publish(TaskEvent::Start(event::TaskStart {
                container_id: id.to_owned(),
                pid: process.pid(),
                ..Default::default()
            }));
        } else {
            process.set_pid(started.pid);
            self.publish(TaskEvent::ExecStarted(event::TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                pid: started.pid,
                ..Default::default()
            }));
        }
        Ok(process.pid())
    }

    /// Adds a process to the container.
    ///
    /// # Errors
    /// When there is one of that name, the container is over, or the agent refuses it.
    pub async fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let (agent, ports) = {
            let mut slot = self.slot();
            let container = slot.container(&request.id)?;
            container.admits(&request.exec_id)?;
            if container.init.exit().is_some() {
                return Err(TaskError::Precondition(
                    "the container is not running".into(),
                ));
            }
            let sandbox = slot.sandbox()?;
            (sandbox.agent.clone(), Arc::clone(&sandbox.ports))
        };
        let process = bundle::translate_process(&request.spec.value)
            .map_err(|e| TaskError::Invalid(chain(&e)))?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let (streams, stdio) = open_streams(&paths, &ports)?;
        let exec = agent::ExecRequest {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            process,
            stdio: MessageField::some(stdio),
            ..Default::default()
        };
        agent.exec(patience(), &exec).await?;
        let process = Process::new(&request.exec_id, paths, streams, 0);
        self.slot().container(&request.id)?.add(process)?;
        self.publish(TaskEvent::ExecAdded(event::TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Looks a process up.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.slot().container(id)?.process(exec_id)
    }

    /// Tells what a process does.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn status(&self, id: &str, exec_id: &str) -> Result<Status> {
        let mut slot = self.slot();
        let container = slot.container(id)?;
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
        let (_, agent) = self.live(id, exec_id)?;
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

    /// Lists the container's processes.
    ///
    /// # Errors
    /// When it is over.
    pub async fn pids(&self, id: &str) -> Result<Vec<agent::Process>> {
        let (_, agent) = self.live(id, "")?;
        Ok(agent.pids(patience(), &container_id(id)).await?.processes)
    }

    /// Reads the container's figures.
    ///
    /// # Errors
    /// When it is over.
    pub async fn stats(&self, id: &str) -> Result<Metrics> {
        let (_, agent) = self.live(id, "")?;
        let answer = agent.stats(patience(), &container_id(id)).await?;
        Ok(stats::metrics(&answer.files))
    }

    /// Changes the container's limits to those of an OCI `linux.resources` object.
    ///
    /// # Errors
    /// When it is over, or the kernel refuses.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let (_, agent) = self.live(id, "")?;
        let request = agent::UpdateRequest {
            container_id: id.to_owned(),
            resources: bundle::check_resources(resources)
                .map_err(|e| TaskError::Invalid(chain(&e)))?,
            ..Default::default()
        };
        agent.update(patience(), &request).await?;
        Ok(())
    }

    /// Makes the container stand still.
    ///
    /// # Errors
    /// When it is over.
    pub async fn pause(&self, id: &str) -> Result<()> {
        let (_, agent) = self.live(id, "")?;
        agent.pause(patience(), &container_id(id)).await?;
        self.slot().container(id)?.paused = true;
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
        self.slot().container(id)?.paused = false;
        self.publish(TaskEvent::Resumed(event::TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Forgets a process that is over or was never started; tells its pid and how it ended.
    ///
    /// # Errors
    /// When it runs.
    pub async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<(u32, Exit)> {
        let process = self.process(id, exec_id)?;
        let exit = over(&process).await?;
        drain(&process, Instant::now() + DRAIN_PATIENCE).await;
        let agent = self.slot().sandbox().map(|sandbox| sandbox.agent.clone());
        if let Ok(agent) = agent {
            let context = ttrpc::context::with_duration(DELETE_PATIENCE);
            if let Err(e) = agent.delete(context, &process_id(id, exec_id)).await {
                info!("the agent keeps process {exec_id}: {e}");
            }
        }
        self.slot().container(id)?.forget(exec_id);
        Ok((process.pid(), exit))
    }

    /// Ends the machine of a container that is over or was never started, and removes everything
    /// that was made for it on the host; tells its pid and how it ended.
    ///
    /// # Errors
    /// When it runs, or something cannot be removed: then it may be asked again.
    pub async fn delete(&self, id: &str) -> Result<(u32, Exit)> {
        let _turn = self.0.turn.lock().await;
        let init = self.process(id, "")?;
        let exit = over(&init).await?;
        let processes = self.slot().container(id)?.processes();
        let deadline = Instant::now() + DRAIN_PATIENCE;
        for process in processes {
            drain(&process, deadline).await;
        }

        let sandbox = {
            let mut slot = self.slot();
            match std::mem::replace(&mut *slot, Slot::Empty) {
                Slot::Live { container, sandbox } => {
                    *slot = Slot::Removing(container);
                    Some(sandbox)
                }
                other => {
                    *slot = other;
                    None
                }
            }
        };
        if let Some(sandbox) = sandbox {
            if !sandbox.gone.is_told() {
                let context = ttrpc::context::with_duration(DELETE_PATIENCE);
                if let Err(e) = sandbox.agent.delete(context, &process_id(id, "")).await {
                    info!("the agent has nothing to delete: {e}");
                }
            }
            let ended = sandbox.shut_down().await;
            ended.map_err(|e| TaskError::failed(&e))?;
        }
        let (state, bundle) = {
            let mut slot = self.slot();
            let container = slot.container(id)?;
            (container.state.clone(), container.bundle.clone())
        };
        // What a Delete before this one may have failed to remove, and the bundle's mounts.
        cleanup::clean_up(&state, &bundle).map_err(|e| TaskError::failed(&e))?;
        *self.slot() = Slot::Empty;
        self.publish(TaskEvent::Delete(event::TaskDelete {
            container_id: id.to_owned(),
            pid: init.pid(),
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        }));
        Ok((init.pid(), exit))
    }

    /// Ends the shim, unless it still has a container: containerd asks after every Delete.
    pub fn shut_down(&self) {
        if matches!(*self.slot(), Slot::Empty) {
            self.0.shutdown.notify_one();
        }
    }

    /// Follows the agent's events to their end.
    async fn follow(&self, agent: AgentClient) {
        let stream = agent.events(Context::default(), &agent::Empty::new()).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(e) => return warn!("follow the agent's events: {e}"),
        };
        let mut last_oom = None;
        while let Ok(Some(event)) = stream.recv().await {
            match event.what {
                Some(agent::event::What::Exit(exit)) => self.exited(&exit).await,
                Some(agent::event::What::Oom(_)) => {
                    let now = Instant::now();
                    if last_oom.is_none_or(|last| now.duration_since(last) >= OOM_INTERVAL) {
                        last_oom = Some(now);
                        self.publish(TaskEvent::Oom(event::TaskOOM {
                            container_id: self.0.id.clone(),
                            ..Default::default()
                        }));
                    }
                }
                _ => {}
            }
        }
    }

    async fn exited(&self, exit: &agent::Exit) {
        let ids = exit.process.get_or_default();
        // One that is not known was deleted, or the guest makes it up.
        let Ok(process) = self.process(&ids.container_id, &ids.exec_id) else {
            return;
        };
        let exit = Exit {
            status: exit.status,
            // The guest's clock is its own.
            at: SystemTime::now(),
        };
        self.ended(&process, exit).await;
    }

    /// The machine is over: so are all its processes.
    async fn machine_ended(&self, reason: &str) {
        let processes = match self.slot().container(&self.0.id) {
            Ok(container) => container.processes(),
            Err(_) => return,
        };
        let running: Vec<_> = processes.iter().filter(|p| p.exit().is_none()).collect();
        if !running.is_empty() {
            warn!(
                "the machine of {} ended under {} processes: {reason}",
                self.0.id,
                running.len()
            );
        }
        for process in running {
            let exit = Exit {
                status: LOST,
                at: SystemTime::now(),
            };
            self.ended(process, exit).await;
        }
    }

    /// A process is over: says so, unless that is known.
    async fn ended(&self, process: &Process, exit: Exit) {
        // Waits for a Start that is under way: see `container`.
        let mut state = process.state.lock().await;
        if !process.stop(&mut state, exit) {
            return;
        }
        let container_id = self.0.id.clone();
        let id = if process.exec_id.is_empty() {
            container_id.clone()
        } else {
            process.exec_id.clone()
        };
        self.publish(TaskEvent::Exit(event::TaskExit {
            container_id,
            id,
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        }));
    }

    /// Looks a process up that is not over, with the agent to ask about it.
    fn live(&self, id: &str, exec_id: &str) -> Result<(Arc<Process>, AgentClient)> {
        let mut slot = self.slot();
        let process = slot.container(id)?.process(exec_id)?;
        if process.exit().is_some() {
            return Err(TaskError::Finished);
        }
        Ok((process, slot.sandbox()?.agent.clone()))
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, event: TaskEvent) {
        self.0.events.publish(event);
    }
}

/// Creates the container in a machine that is up; returns its init.
async fn create_in(
    sandbox: &Sandbox,
    request: &CreateTaskRequest,
    guest: &Guest,
) -> Result<Process> {
    let paths = Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let (streams, stdio) = open_streams(&paths, &sandbox.ports)?;
    let create = agent::CreateRequest {
        container_id: request.id.clone(),
        spec: serde_json::to_vec(&guest.spec).map_err(|e| TaskError::failed(&e))?,
        stdio: MessageField::some(stdio),
        ..Default::default()
    };
    sandbox.agent.create(patience(), &create).await?;
    Ok(Process::new("", paths, streams, sandbox.pid()))
}

fn open_streams(paths: &Paths, ports: &Ports) -> Result<(stdio::Streams, agent::Stdio)> {
    stdio::open(paths, ports).map_err(|e| TaskError::failed(&e))
}

/// Memory of the machine: enough for the container's limit, and the configured size otherwise.
fn memory_mib(configured: u32, spec: &Spec) -> u32 {
    let limit = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.memory().as_ref())
        .and_then(oci_spec::runtime::LinuxMemory::limit);
    let wanted = match limit.map(u64::try_from) {
        Some(Ok(bytes)) => (bytes >> 20).saturating_add(OVERHEAD_MIB),
        _ => 0,
    };
    // More than the host has is of no use: a limit may be any number.
    let host = host_memory_mib().unwrap_or(u64::from(u32::MAX));
    u32::try_from(wanted.min(host))
        .unwrap_or(u32::MAX)
        .max(configured)
}

fn host_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut lines = info.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib >> 10)
}

/// How a process ended; one that was never started counts as ended now, and has no output.
async fn over(process: &Process) -> Result<Exit> {
    let mut state = process.state.lock().await;
    match *state {
        State::Stopped(exit) => Ok(exit),
        State::Running => Err(TaskError::Precondition("the process is running".into())),
        State::Created => {
            let exit = Exit {
                status: LOST,
                at: SystemTime::now(),
            };
            process.stop(&mut state, exit);
            drop(process.take_streams());
            Ok(exit)
        }
    }
}

async fn drain(process: &Process, deadline: Instant) {
    if let Some(mut streams) = process.take_streams() {
        let patience = deadline.saturating_duration_since(Instant::now());
        streams.drained(patience).await;
    }
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

fn created_event(request: &CreateTaskRequest, pid: u32) -> event::TaskCreate {
    event::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(event::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        }),
        pid,
        ..Default::default()
    }
}
