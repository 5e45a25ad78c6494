//! The states of a container and its processes, and what each of them has.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::ProcessId;
use tokio::task::AbortHandle;

use super::create::Report;
use super::error::ContainerError;
use super::plan;
use super::process_plan::{Confinement, ExecPlan};
use super::volumes::Held;
use crate::cgroup::{Cgroup, CountWatch};
use crate::stdio::{Ports, Terminal};

/// One container: its init, and what belongs to it.
pub(super) struct Container {
    pub(super) init: Process,
    pub(super) execs: HashMap<String, Process>,
    pub(super) paused: bool,
    pub(super) cgroup: Cgroup,
    pub(super) oom: Arc<CountWatch>,
    pub(super) oom_task: Option<AbortHandle>,
    pub(super) confinement: Confinement,
    _volumes: Held,
}

/// One process the shim asked for.
pub(super) enum Process {
    /// An init that libcontainer is at work on.
    Creating,
    /// An init whose launcher waits.
    Created {
        pid: i32,
        report: Report,
        terminal: Option<Terminal>,
    },
    /// An exec that was never started.
    Registered(Box<(ExecPlan, Ports)>),
    /// An exec that libcontainer is at work on. It writes the process's id to a file.
    Launching { pid_file: PathBuf },
    /// Its program may run already.
    Starting {
        pid: i32,
        terminal: Option<Terminal>,
    },
    /// Its program runs.
    Running {
        pid: i32,
        terminal: Option<Terminal>,
    },
    /// It has ended, or could not be started.
    Exited,
}

impl Process {
    pub(super) fn state(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created",
            Self::Registered(_) => "not started",
            Self::Launching { .. } | Self::Starting { .. } => "being started",
            Self::Running { .. } => "running",
            Self::Exited => "stopped",
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid, .. } | Self::Starting { pid, .. } | Self::Running { pid, .. } => {
                Some(*pid)
            }
            // Nothing is in it until there is a process.
            Self::Launching { pid_file } => fs::read_to_string(pid_file).ok()?.parse().ok(),
            Self::Creating | Self::Registered(_) | Self::Exited => None,
        }
    }

    pub(super) fn terminal(&self) -> Option<&Terminal> {
        match self {
            Self::Created { terminal, .. }
            | Self::Starting { terminal, .. }
            | Self::Running { terminal, .. } => terminal.as_ref(),
            Self::Creating | Self::Registered(_) | Self::Launching { .. } | Self::Exited => None,
        }
    }

    /// Whether there may be a process of the system behind it.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self, Self::Registered(_) | Self::Exited)
    }
}

impl Container {
    pub(super) fn new(id: &str, confinement: Confinement, volumes: Held) -> Self {
        let cgroup = Cgroup::at(&plan::cgroup_path(id));
        Self {
            init: Process::Creating,
            execs: HashMap::new(),
            paused: false,
            oom: Arc::new(cgroup.oom_watch()),
            oom_task: None,
            cgroup,
            confinement,
            _volumes: volumes,
        }
    }

    pub(super) fn process(&mut self, id: &ProcessId) -> Result<&mut Process, ContainerError> {
        if id.exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        let exec = self.execs.get_mut(&id.exec_id);
        exec.ok_or_else(|| ContainerError::NoExec {
            container_id: id.container_id.clone(),
            exec_id: id.exec_id.clone(),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.init.is_alive() || self.execs.values().any(Process::is_alive)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(task) = &self.oom_task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_has_a_process_before_its_program_runs() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let exec = Process::Launching {
            pid_file: pid_file.clone(),
        };

        let pids = ["", "71"].map(|text| {
            let before = exec.pid();
            fs::write(&pid_file, text).unwrap();
            (before, exec.pid())
        });

        assert_eq!(pids, [(None, None), (None, Some(71))]);
    }
}
