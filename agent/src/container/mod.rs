//! The containers of this guest and their life cycle.
//!
//! ```text
//! init   Creating ──▶ Created ──start──▶ Starting ──▶ Running ──▶ Exited
//!                        └───────────────── killed ─────────────────▲
//! exec             Registered ──start──▶ Launching ──▶ Starting ──▶ Running ──▶ Exited
//! ```
//! Every transition is made here, in `start` or in `ends`, under the table's lock, which is never
//! held while waiting; a process that ended is `Exited` whatever was under way. `create` and `exec`
//! do the work.

pub mod block_volumes;
pub mod capabilities;
pub mod cgroup_owner;
pub mod copy_up;
pub mod create;
pub mod device_nodes;
pub mod devices;
pub mod diary;
mod ends;
pub mod error;
pub mod exec;
pub mod launch;
pub mod mounts;
pub mod namespaces;
#[cfg(any(feature = "seccomp", test))]
pub mod newer_calls;
pub mod plan;
pub mod process_plan;
pub mod program;
pub mod refusal;
pub mod resources;
pub mod seccomp;
mod start;
pub mod start_hooks;
mod state;
pub mod user_namespace;
pub mod volumes;
pub mod working_directory;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::ProcessId;
use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use oci_spec::runtime::LinuxResources;
use tokio::sync::Notify;

use self::create::Created;
use self::devices::Disk;
use self::error::ContainerError;
use self::namespaces::Neighbour;
use self::process_plan::{Confinement, LaunchPlan};
use self::state::{Container, Process};
use self::volumes::{Held, Volumes};
use crate::cgroup;
use crate::error_chain;
use crate::events::Events;
use crate::host::Host;
use crate::network::Namespace;
use crate::operation;
use crate::processes::{self, Description};
use crate::reaper::Reaper;
use crate::stdio::Ports;
use crate::sys;

/// How long processes that were killed may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// All containers; clones share them.
#[derive(Clone)]
pub struct Containers {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    reaper: Reaper,
    events: Arc<Events>,
    /// Held for look-ups and transitions alone.
    table: Mutex<HashMap<String, Container>>,
    /// Some process has ended.
    ended: Notify,
    volumes: Volumes,
}

impl Containers {
    /// No containers; their streams will go to `host`.
    pub fn new(host: Host, reaper: Reaper, events: Arc<Events>) -> Self {
        Self {
            inner: Arc::new(Inner {
                host,
                reaper,
                events,
                table: Mutex::default(),
                ended: Notify::new(),
                volumes: Volumes::default(),
            }),
        }
    }

    /// For operations that concern no container.
    pub fn reaper(&self) -> &Reaper {
        &self.inner.reaper
    }

    /// Creates a container from its `config.json`; returns its init's process id.
    ///
    /// # Errors
    /// `Exists`, `Plan`, `Create`.
    pub async fn create(
        &self,
        id: &str,
        config: &[u8],
        disks: &[Disk],
        ports: Ports,
    ) -> Result<i32, ContainerError> {
        plan::check_id(id)?;
        let neighbour = |name: &str| self.neighbour(name);
        let plan = plan::container(id, config, ports.is_terminal(), disks, neighbour)?;
        let inner = &self.inner;
        let volumes = inner.volumes.hold(plan.volumes.clone());
        self.reserve(id, plan.launch.confinement.clone(), volumes)?;
        match create::create(&inner.reaper, inner.host, id, &plan, ports).await {
            Ok(created) => Ok(self.created(id, created, &plan.launch)),
            Err(error) => {
                // It lets go of its volumes, which may take a moment: not under the table's lock.
                let failed = self.table().remove(id);
                drop(failed);
                Err(error.into())
            }
        }
    }

    /// Registers a process for `start`.
    ///
    /// # Errors
    /// `NoContainer`, `Exists`, `Plan`.
    pub fn exec(&self, id: &ProcessId, process: &[u8], ports: Ports) -> Result<(), ContainerError> {
        plan::check_id(&id.exec_id)?;
        self.with(&id.container_id, |container| {
            if container.execs.contains_key(&id.exec_id) {
                return Err(ContainerError::Exists {
                    what: "exec",
                    id: id.exec_id.clone(),
                });
            }
            let plan = process_plan::exec(process, &container.confinement, ports.is_terminal())?;
            let registered = Process::Registered(Box::new((plan, ports)));
            container.execs.insert(id.exec_id.clone(), registered);
            Ok(())
        })
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// `NoContainer`, `NoExec`, `Finished`, `State`, `System`.
    pub fn signal(&self, id: &ProcessId, signal: i32) -> Result<(), ContainerError> {
        self.with(&id.container_id, |container| {
            let process = container.process(id)?;
            match process {
                Process::Exited => Err(ContainerError::Finished),
                process => match process.pid() {
                    // The table learns of an end a moment after the process was reaped; its number
                    // is not used again so soon, since they count up.
                    Some(pid) => kill(pid, signal),
                    None => Err(ContainerError::State {
                        action: "signal",
                        state: process.state(),
                    }),
                },
            }
        })
    }

    /// Sends a signal to every process of a container.
    ///
    /// # Errors
    /// `NoContainer`, `Finished`, `Cgroup`, `System`.
    pub fn signal_all(&self, container_id: &str, signal: i32) -> Result<(), ContainerError> {
        self.with(container_id, |container| {
            let cgroup = &container.cgroup;
            if !container.init.is_alive() && !cgroup.is_populated() {
                return Err(ContainerError::Finished);
            }
            if signal == libc::SIGKILL {
                // Whatever cgroups the container has made, and whoever is just being forked.
                return Ok(cgroup.kill()?);
            }
            for pid in cgroup.pids()? {
                match kill(pid, signal) {
                    Err(ContainerError::Finished) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// Sets the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// `NoContainer`, `NoExec`, `NoTerminal`, `Finished`, `System`.
    pub fn resize(&self, id: &ProcessId, width: u16, height: u16) -> Result<(), ContainerError> {
        let terminal = self.with(&id.container_id, |container| {
            let process = container.process(id)?;
            match process {
                Process::Exited => Err(ContainerError::Finished),
                process => process
                    .terminal()
                    .cloned()
                    .ok_or(ContainerError::NoTerminal),
            }
        })?;
        let resized = terminal.resize(width, height);
        resized.map_err(|source| ContainerError::System {
            action: "resize the terminal".into(),
            source,
        })
    }

    /// Forgets a process that is over or was never started; an init with its whole container. An exec
    /// on its way to its program is killed.
    ///
    /// # Errors
    /// `NoContainer`, `NoExec`, `State`, `Undead`, `Cgroup`.
    pub async fn delete(&self, id: &ProcessId) -> Result<(), ContainerError> {
        if !id.exec_id.is_empty() {
            return self.delete_exec(id).await;
        }
        let container_id = &id.container_id;
        self.with(container_id, |container| match &container.init {
            Process::Exited => Ok(()),
            Process::Created { pid, .. } => kill(*pid, libc::SIGKILL),
            init => Err(ContainerError::State {
                action: "delete",
                state: init.state(),
            }),
        })?;
        // Its execs were killed with it, and are about to be reaped.
        self.until_all_ended(|table| table.get(container_id).is_none_or(|c| !c.is_alive()))
            .await?;
        let container = self.table().remove(container_id);
        // Of two calls one finds it.
        container.ok_or_else(|| ContainerError::NoContainer(container_id.clone()))?;
        Ok(create::remove(self.reaper(), container_id).await?)
    }

    async fn delete_exec(&self, id: &ProcessId) -> Result<(), ContainerError> {
        self.with(&id.container_id, |container| {
            let process = container.process(id)?;
            match (&*process, process.pid()) {
                // The container may have stopped it: it would wait for ever.
                (Process::Launching { .. }, Some(pid)) => match kill(pid, libc::SIGKILL) {
                    Err(ContainerError::Finished) => Ok(()),
                    killed => killed,
                },
                (process, _) if process.is_alive() => Err(ContainerError::State {
                    action: "delete",
                    state: process.state(),
                }),
                _ => Ok(()),
            }
        })?;
        let ended = |container: &Container| {
            let exec = container.execs.get(&id.exec_id);
            exec.is_none_or(|exec| !exec.is_alive())
        };
        self.until_all_ended(|table| table.get(&id.container_id).is_none_or(ended))
            .await?;
        self.with(&id.container_id, |container| {
            container.execs.remove(&id.exec_id);
            Ok(())
        })
    }

    /// The container's processes, with the exec ids of those that were started as such.
    ///
    /// # Errors
    /// `NoContainer`, `Cgroup`, `Operation`.
    pub async fn processes(
        &self,
        container_id: &str,
    ) -> Result<Vec<(Description, String)>, ContainerError> {
        let (pids, mut names) = self.with(container_id, |container| {
            let execs = container.execs.iter();
            let names = execs.filter_map(|(id, exec)| Some((exec.pid()?, id.clone())));
            let names: HashMap<i32, String> = names.collect();
            Ok((container.cgroup.pids()?, names))
        })?;
        let described = processes::describe(&self.inner.reaper, pids).await?;
        let named = |described: Description| {
            let name = names.remove(&described.pid).unwrap_or_default();
            (described, name)
        };
        Ok(described.into_iter().map(named).collect())
    }

    /// What the container's cgroup says.
    ///
    /// # Errors
    /// `NoContainer`.
    pub fn stats(&self, container_id: &str) -> Result<HashMap<String, String>, ContainerError> {
        self.with(container_id, |container| Ok(container.cgroup.stats()))
    }

    /// Freezes or thaws a running container.
    ///
    /// # Errors
    /// `NoContainer`, `State`, `Cgroup`.
    pub async fn set_paused(&self, container_id: &str, paused: bool) -> Result<(), ContainerError> {
        let action = if paused { "pause" } else { "resume" };
        let cgroup = self.with(container_id, |container| match &container.init {
            Process::Running { .. } => {
                // Before the fact when pausing, so that no exec starts into a frozen cgroup.
                container.paused |= paused;
                Ok(container.cgroup.clone())
            }
            init => Err(ContainerError::State {
                action,
                state: init.state(),
            }),
        })?;
        let done = cgroup.set_frozen(paused).await;
        self.with(container_id, |container| {
            container.paused = cgroup.is_frozen();
            Ok(())
        })?;
        Ok(done?)
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// `NoContainer`, `State`, `Operation`.
    pub async fn update(
        &self,
        container_id: &str,
        resources: &LinuxResources,
    ) -> Result<(), ContainerError> {
        self.with(container_id, |container| match &container.init {
            Process::Created { .. } | Process::Running { .. } => Ok(()),
            init => Err(ContainerError::State {
                action: "update",
                state: init.state(),
            }),
        })?;
        let mut resources = resources.clone();
        resources::complete(&mut resources);
        // A limit below what is in use makes the write wait for reclaim.
        let updated = operation::run(&self.inner.reaper, "update limits", &[], || {
            let manager = Manager::new(cgroup::ROOT.into(), plan::cgroup_path(container_id))
                .map_err(|error| error_chain(&error))?;
            let options = ControllerOpt {
                resources: &resources,
                disable_oom_killer: false,
                oom_score_adj: None,
                freezer_state: None,
            };
            manager.apply(&options).map_err(|error| error_chain(&error))
        });
        Ok(updated.await?)
    }

    /// The network namespace of a container, which must have an init.
    ///
    /// # Errors
    /// `NoContainer`, `Finished`, `System`.
    pub fn network(&self, container_id: &str) -> Result<Namespace, ContainerError> {
        let init = self.with(container_id, |container| {
            container.init.pid().ok_or(ContainerError::Finished)
        })?;
        Namespace::of(init).map_err(|source| ContainerError::System {
            action: format!("open the network namespace of {container_id}"),
            source,
        })
    }

    /// What a container that joins this one needs to know of it; it must have an init.
    fn neighbour(&self, id: &str) -> Option<Neighbour> {
        let table = self.table();
        let container = table.get(id)?;
        Some(Neighbour {
            init: container.init.pid()?,
            id_maps: container.confinement.id_maps.clone(),
        })
    }

    fn reserve(
        &self,
        id: &str,
        confinement: Confinement,
        volumes: Held,
    ) -> Result<(), ContainerError> {
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(ContainerError::Exists {
                what: "container",
                id: id.to_owned(),
            });
        }
        table.insert(id.to_owned(), Container::new(id, confinement, volumes));
        Ok(())
    }

    fn created(&self, id: &str, created: Created, launch: &LaunchPlan) -> i32 {
        let Created {
            pid,
            exit,
            report,
            terminal,
        } = created;
        start::fit(terminal.as_ref(), launch);
        let mut table = self.table();
        // `delete` leaves a container alone while it is being created.
        let container = table.get_mut(id).expect("reserved by `create`");
        container.init = Process::Created {
            pid,
            report,
            terminal,
        };
        let watch = self
            .clone()
            .tell_ooms(id.to_owned(), Arc::clone(&container.oom));
        container.oom_task = Some(tokio::spawn(watch).abort_handle());
        let id = ProcessId {
            container_id: id.to_owned(),
            ..ProcessId::default()
        };
        tokio::spawn(self.clone().end_with(id, pid, exit));
        pid
    }

    fn with<T>(
        &self,
        container_id: &str,
        act: impl FnOnce(&mut Container) -> Result<T, ContainerError>,
    ) -> Result<T, ContainerError> {
        let mut table = self.table();
        match table.get_mut(container_id) {
            Some(container) => act(container),
            None => Err(ContainerError::NoContainer(container_id.to_owned())),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.inner
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn kill(pid: i32, signal: i32) -> Result<(), ContainerError> {
    sys::kill(pid, signal).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => ContainerError::Finished,
        _ => ContainerError::System {
            action: format!("send signal {signal} to process {pid}"),
            source,
        },
    })
}
