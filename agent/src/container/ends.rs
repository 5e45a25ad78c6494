//! Ends: what becomes of a container when its processes end, who is told, and who waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use agent_protocol::{Event, Exit as ExitEvent, Oom, ProcessId, event};

use super::error::ContainerError;
use super::state::{Container, Process};
use super::{Containers, PATIENCE};
use crate::cgroup::CountWatch;
use crate::error_chain;
use crate::reaper::Exit;

impl Containers {
    pub(super) fn exited(&self, id: &ProcessId) {
        let _ = self.with(&id.container_id, |container| {
            *container.process(id)? = Process::Exited;
            Ok(())
        });
        self.inner.ended.notify_waiters();
    }

    /// Waits for a process's end and tells it; the end of an init is the end of its container.
    pub(super) async fn end_with(
        self,
        id: ProcessId,
        pid: i32,
        exit: tokio::sync::oneshot::Receiver<Exit>,
    ) {
        let Ok(exit) = exit.await else {
            return log::error!(
                "nobody reaps process {pid} of container {:?}",
                id.container_id
            );
        };
        let killed_for_memory = self.with(&id.container_id, |container| {
            if id.exec_id.is_empty()
                && let Err(error) = container.cgroup.kill()
            {
                log::error!("container {:?}: {}", id.container_id, error_chain(&error));
            }
            Ok(container.oom.is_new())
        });
        if killed_for_memory.unwrap_or(false) {
            self.publish_oom(&id.container_id);
        }
        self.exited(&id);
        self.inner.events.publish(exit_event(id, pid, exit));
    }

    pub(super) async fn tell_ooms(self, container_id: String, watch: Arc<CountWatch>) {
        loop {
            match watch.happened().await {
                Ok(()) => self.publish_oom(&container_id),
                Err(error) => {
                    return log::debug!("memory events of container {container_id:?}: {error}");
                }
            }
        }
    }

    fn publish_oom(&self, container_id: &str) {
        self.inner.events.publish(Event {
            what: Some(event::What::Oom(Oom {
                container_id: container_id.to_owned(),
                ..Oom::default()
            })),
            ..Event::default()
        });
    }

    /// Kills every process of every container and waits for their ends.
    ///
    /// # Errors
    /// `Undead`; what can be killed was.
    pub async fn kill_all(&self) -> Result<(), ContainerError> {
        for (id, container) in &*self.table() {
            if container.is_alive()
                && let Err(error) = container.cgroup.kill()
            {
                log::error!("kill container {id}: {}", error_chain(&error));
            }
        }
        self.until_all_ended(|table| !table.values().any(Container::is_alive))
            .await
    }

    /// Waits, with patience, for ends that are under way.
    pub(super) async fn until_all_ended(
        &self,
        all_ended: impl Fn(&HashMap<String, Container>) -> bool,
    ) -> Result<(), ContainerError> {
        let wait = async {
            loop {
                // Registered before the look, so that no end is missed between the two.
                let ended = self.inner.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if all_ended(&self.table()) {
                    return;
                }
                ended.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.map_err(|_| ContainerError::Undead(PATIENCE))
    }
}

fn exit_event(id: ProcessId, pid: i32, exit: Exit) -> Event {
    let at = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let exit = ExitEvent {
        process: Some(id).into(),
        pid: u32::try_from(pid).expect("process ids are positive"),
        status: exit.status,
        exited_at_ns: i64::try_from(at.as_nanos()).unwrap_or(i64::MAX),
        ..ExitEvent::default()
    };
    Event {
        what: Some(event::What::Exit(exit)),
        ..Event::default()
    }
}
