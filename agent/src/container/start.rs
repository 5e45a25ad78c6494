//! From a process that is set up to one whose program runs.

use std::fs;

use agent_protocol::ProcessId;

use super::Containers;
use super::error::ContainerError;
use super::process_plan::LaunchPlan;
use super::state::Process;
use super::{create, exec};
use crate::stdio::Terminal;

impl Containers {
    /// Starts an init or a registered process; returns its process id.
    ///
    /// # Errors
    /// `NoContainer`, `NoExec`, `State`, `Paused`, `Create`.
    pub async fn start(&self, id: &ProcessId) -> Result<i32, ContainerError> {
        if id.exec_id.is_empty() {
            self.start_init(id).await
        } else {
            self.start_exec(id).await
        }
    }

    async fn start_init(&self, id: &ProcessId) -> Result<i32, ContainerError> {
        let (pid, report) = self.with(&id.container_id, |container| {
            match std::mem::replace(&mut container.init, Process::Exited) {
                Process::Created {
                    pid,
                    report,
                    terminal,
                } => {
                    container.init = Process::Starting { pid, terminal };
                    Ok((pid, report))
                }
                other => {
                    let state = other.state();
                    container.init = other;
                    Err(ContainerError::State {
                        action: "start",
                        state,
                    })
                }
            }
        })?;
        let started = create::start(&self.inner.reaper, &id.container_id, report).await;
        if started.is_err() {
            // It ends by itself, unless it was the request to start it that failed.
            let _ = self.signal(id, libc::SIGKILL);
        }
        started?;
        self.running(id, pid);
        Ok(pid)
    }

    async fn start_exec(&self, id: &ProcessId) -> Result<i32, ContainerError> {
        let action = "start";
        let workspace = exec::workspace();
        let (init, registered) = self.with(&id.container_id, |container| {
            if container.paused {
                let action = "start a process in";
                return Err(ContainerError::Paused { action });
            }
            let Process::Running { pid: init, .. } = container.init else {
                let state = container.init.state();
                return Err(ContainerError::State {
                    action: "start a process beside",
                    state,
                });
            };
            let process = container.process(id)?;
            let pid_file = exec::pid_file(&workspace);
            match std::mem::replace(process, Process::Launching { pid_file }) {
                Process::Registered(registered) => Ok((init, registered)),
                other => {
                    let state = other.state();
                    *process = other;
                    Err(ContainerError::State { action, state })
                }
            }
        })?;
        let (plan, ports) = *registered;
        let inner = &self.inner;
        let container = (id.container_id.as_str(), init);
        let started = exec::start(
            &inner.reaper,
            inner.host,
            container,
            workspace,
            &plan,
            ports,
        );
        let started = match started.await {
            Ok(started) => started,
            Err(error) => {
                self.exited(id);
                return Err(if is_over(init) {
                    // Whatever step met that first, and however it put it.
                    ContainerError::NotRunning
                } else {
                    error.into()
                });
            }
        };
        fit(started.terminal.as_ref(), &plan.launch);
        let _ = self.with(&id.container_id, |container| {
            let (pid, terminal) = (started.pid, started.terminal);
            *container.process(id)? = Process::Starting { pid, terminal };
            Ok(())
        });
        self.running(id, started.pid);
        tokio::spawn(self.clone().end_with(id.clone(), started.pid, started.exit));
        Ok(started.pid)
    }

    /// `Starting` → `Running`; a process that has ended meanwhile stays so.
    fn running(&self, id: &ProcessId, pid: i32) {
        let _ = self.with(&id.container_id, |container| {
            let process = container.process(id)?;
            if let Process::Starting { terminal, .. } = process {
                let terminal = terminal.take();
                *process = Process::Running { pid, terminal };
            }
            Ok(())
        });
    }
}

/// Whether a process has ended, reaped or not: it has no namespaces any more.
fn is_over(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/pid")).is_err()
}

/// Gives a terminal the size that the configuration asks for.
pub(super) fn fit(terminal: Option<&Terminal>, launch: &LaunchPlan) {
    if let Some(terminal) = terminal
        && let Some(size) = launch.process.console_size()
        && let (Ok(width), Ok(height)) = (size.width().try_into(), size.height().try_into())
        && let Err(error) = terminal.resize(width, height)
    {
        log::warn!("set the terminal's size: {error}");
    }
}
