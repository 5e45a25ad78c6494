//! Delete: what was made is undone.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim::protos::events::task as event;
use log::info;

use super::{Result, Runtime, blocking, process_id, timestamp};
use crate::cleanup;
use crate::container::{Exit, LOST, Process, State};
use crate::error::TaskError;
use crate::events::TaskEvent;
use crate::hooks::Subject;
use crate::rootfs;
use crate::sandbox::Sandbox;
use crate::state_dir::StateError;

/// How long Delete waits for output that is still on its way.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The same where the machine ends anyway.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Forgets a process that is over or was never started; tells its pid and how it ended.
    ///
    /// # Errors
    /// When it runs.
    pub async fn delete_exec(&self, id: &str, exec_id: &str) -> Result<(u32, Exit)> {
        let process = self.process(id, exec_id)?;
        let exit = over(&process).await?;
        drain(&process, Instant::now() + DRAIN_PATIENCE).await;
        let machine = self.members().sandbox().ok().cloned();
        if let Some(machine) = machine {
            forget_inside(&machine, id, exec_id).await;
        }
        self.members().container(id)?.forget(exec_id);
        Ok((process.pid(), exit))
    }

    /// Ends the machine of a container that is over or was never started, if no other is in it, and
    /// removes everything that was made for the container on the host; tells its pid and how it ended.
    ///
    /// # Errors
    /// When it runs, or something cannot be removed: then it may be asked again.
    pub async fn delete(&self, id: &str) -> Result<(u32, Exit)> {
        let _turn = self.0.turn.lock().await;
        let init = self.process(id, "")?;
        let exit = over(&init).await?;
        let processes = self.members().container(id)?.processes();
        let deadline = Instant::now() + DRAIN_PATIENCE;
        for process in &processes {
            drain(process, deadline).await;
        }

        let ended = self.end_machine_of(id).await;
        ended.map_err(|e| TaskError::failed(&e))?;
        let machine = self.members().sandbox().ok().cloned();
        if let Some(machine) = &machine {
            // Others go on in it.
            forget_inside(machine, id, "").await;
            machine.disks.remove(id).await;
            machine.memory.forget(id);
            let (share, of) = (Arc::clone(&machine.share), id.to_owned());
            blocking(move || share.remove(&of)).await?;
        }
        self.release(id).await;
        let (state, mounts, hooks, subject) = {
            let mut members = self.members();
            let container = members.container(id)?;
            // A Delete that has to be asked again runs them once.
            let hooks = std::mem::take(&mut container.hooks);
            let (state, mounts) = (container.state.clone(), container.mounts.clone());
            // It has no process any more (OCI runtime-spec 1.2, runtime.md "State").
            let subject = Subject {
                pid: 0,
                ..container.subject()
            };
            (state, mounts, hooks, subject)
        };
        hooks.stopped(&subject).await;
        if machine.is_none() {
            if let Some(cgroup) = self.members().take_cgroup() {
                cgroup.remove();
            }
            // What a Delete before this one may have failed to remove, and the bundle's mounts.
            let state = state.clone();
            blocking(move || cleanup::clean_up(&state, mounts.as_deref())).await?;
        } else if let Some(mounts) = mounts {
            blocking(move || rootfs::unmount(&mounts)).await?;
        }
        // Of one that the agent could not end nobody would hear any more.
        let lost = Exit {
            status: LOST,
            at: SystemTime::now(),
        };
        for process in &processes {
            if over(process).await.is_err() {
                self.ended(id, process, lost).await;
            }
        }
        state.forget_member(id);
        self.members().forget(id);
        self.publish(TaskEvent::Delete(event::TaskDelete {
            container_id: id.to_owned(),
            pid: init.pid(),
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        }));
        Ok((init.pid(), exit))
    }

    /// Ends the machine, if it is not ended yet and there for container `id` alone, and removes what
    /// was made for it but the bundle's mounts.
    pub(super) async fn end_machine_of(&self, id: &str) -> std::result::Result<(), StateError> {
        let Some(sandbox) = self.members().take_machine(id) else {
            return Ok(());
        };
        if !sandbox.gone.is_told() {
            forget_inside(&sandbox, id, "").await;
        }
        sandbox.shut_down().await
    }

    /// Ends what is there for a container while it runs.
    pub(super) async fn release(&self, id: &str) {
        let on_host = self.members().take_on_host(id);
        if let Some(stand_ins) = on_host.stand_ins {
            stand_ins.end().await;
        }
        if let Some(network) = on_host.network {
            network.disconnect().await;
        }
        // Others may share it.
        if let Some(host_network) = on_host.host_network.and_then(Arc::into_inner) {
            host_network.end().await;
        }
    }
}

/// How a process ended; one that was never started counts as ended now, an init as killed (it waits
/// for its start), and has no output.
async fn over(process: &Process) -> Result<Exit> {
    let mut state = process.state.lock().await;
    match *state {
        State::Stopped(exit) => Ok(exit),
        State::Running => Err(TaskError::Precondition("the process is running".into())),
        State::Created => {
            let exit = Exit {
                status: if process.exec_id.is_empty() { LOST } else { 0 },
                at: SystemTime::now(),
            };
            process.stop(&mut state, exit);
            drop(process.take_streams());
            Ok(exit)
        }
    }
}

/// Has the agent forget a process that is over; an agent that cannot is no reason to keep it here.
async fn forget_inside(sandbox: &Sandbox, id: &str, exec_id: &str) {
    let context = ttrpc::context::with_duration(DELETE_PATIENCE);
    let process = process_id(id, exec_id);
    if let Err(e) = sandbox.agent.delete(context, &process).await {
        info!(
            "the agent keeps process {id} {exec_id}: {}",
            TaskError::from(e)
        );
    }
}

async fn drain(process: &Process, deadline: Instant) {
    if let Some(mut streams) = process.take_streams() {
        let patience = deadline.saturating_duration_since(Instant::now());
        streams.drained(patience).await;
    }
}
