//! Exec and Start: a process is added, and its program runs.

use std::sync::Arc;

use agent_protocol as agent;
use containerd_shim::protos::api::ExecProcessRequest;
use containerd_shim::protos::events::task as event;
use log::info;
use protobuf::MessageField;

use super::{Result, Runtime, SIGKILL, open_streams, patience, process_id};
use crate::bundle;
use crate::container::{Process, State};
use crate::error::{TaskError, chain};
use crate::events::TaskEvent;
use crate::stdio::{Owner, Paths};

impl Runtime {
    /// Starts a process that was created or added; returns its pid.
    ///
    /// # Errors
    /// When it does not exist, has been started, or its program cannot be run.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32> {
        let started = self.start_process(id, exec_id).await;
        started.map_err(|e| match exec_id {
            "" => e,
            _ => self.exec_failed(id, e),
        })
    }

    async fn start_process(&self, id: &str, exec_id: &str) -> Result<u32> {
        let (process, agent) = self.live(id, exec_id)?;
        let mut state = process.state.lock().await;
        match *state {
            State::Created => {}
            State::Running => return Err(TaskError::Precondition("already started".into())),
            State::Stopped(_) => return Err(TaskError::Finished),
        }
        if exec_id.is_empty() {
            // Engines make the container's network between Create and Start.
            let (network, host_network) = {
                let members = self.members();
                (members.network(id), members.host_network(id))
            };
            if let Some(network) = network {
                network.connect(id).await?;
            }
            if let Some(host_network) = host_network {
                host_network.follow_ports();
            }
        }
        process.hold_stdin();
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
            return Ok(process.pid());
        }
        let (hooks, subject) = {
            let mut members = self.members();
            let container = members.container(id)?;
            (container.hooks.clone(), container.subject())
        };
        if let Err(e) = hooks.started(&subject).await {
            // As with runc: the container does not go on without what the hook was to do.
            let all = agent::SignalRequest {
                process: MessageField::some(process_id(id, "")),
                signal: SIGKILL,
                all: true,
                ..Default::default()
            };
            if let Err(signal) = agent.signal(patience(), &all).await {
                // One that has ended by itself cannot be killed; what the hook has said is told all the same.
                let why = TaskError::from(signal);
                info!("{id} is not killed after its hook: {why}");
            }
            return Err(TaskError::failed(&e));
        }
        Ok(process.pid())
    }

    /// Adds a process to the container.
    ///
    /// # Errors
    /// When there is one of that name, the container is over, or the agent refuses it.
    pub async fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let added = self.add_process(request).await;
        added.map_err(|e| self.exec_failed(&request.id, e))
    }

    async fn add_process(&self, request: &ExecProcessRequest) -> Result<()> {
        let (agent, ports) = {
            let mut members = self.members();
            let container = members.container(&request.id)?;
            container.admits(&request.exec_id)?;
            if container.init.exit().is_some() {
                return Err(TaskError::NotRunning);
            }
            let sandbox = members.sandbox()?;
            (sandbox.agent.clone(), Arc::clone(&sandbox.ports))
        };
        let process = bundle::translate_process(&request.spec.value, request.terminal)
            .map_err(|e| TaskError::Invalid(chain(&e)))?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = Owner {
            namespace: &self.0.namespace,
            id: &request.exec_id,
        };
        let (streams, stdio) = open_streams(&paths, owner, &ports).await?;
        let exec = agent::ExecRequest {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            process,
            stdio: MessageField::some(stdio),
            ..Default::default()
        };
        agent.exec(patience(), &exec).await?;
        let process = Process::new(&request.exec_id, paths, streams, 0);
        self.members().container(&request.id)?.add(process)?;
        self.publish(TaskEvent::ExecAdded(event::TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..Default::default()
        }));
        Ok(())
    }

    /// Why an exec failed: in a container that is over, that is the reason, whatever the end has cut off.
    fn exec_failed(&self, id: &str, error: TaskError) -> TaskError {
        match self.live(id, "") {
            Err(TaskError::Finished) => TaskError::NotRunning,
            _ => error,
        }
    }
}
