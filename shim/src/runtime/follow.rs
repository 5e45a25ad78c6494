//! What happens in the guest and to it, told to containerd.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_protocol::{self as agent, AgentClient};
use containerd_shim::protos::events::task as event;
use futures::future::join_all;
use log::warn;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use ttrpc::context::Context;

use super::{Runtime, SIGKILL, timestamp};
use crate::container::{Exit, LOST, Process};
use crate::error::{TaskError, chain};
use crate::events::TaskEvent;
use crate::stand_ins::StandIns;
use crate::supervise::Gone;

/// How long the machine's own end may take to be noticed after the agent's connection has ended.
const REASON_PATIENCE: Duration = Duration::from_secs(1);

/// How long the output of a container that has stopped may take before its end is told anyway.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(500);

/// How long a process may take to end after SIGKILL. One that waits for a slow disk is not over at once.
const KILL_PATIENCE: Duration = if cfg!(test) {
    Duration::from_millis(300)
} else {
    Duration::from_secs(30)
};

/// A guest may say as often as it likes that it is out of memory; containerd hears it this often.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a container's init.
struct End {
    id: String,
    process: Arc<Process>,
    exit: Exit,
}

impl Runtime {
    /// Starts to follow the agent's events, and the machine's end.
    pub(super) fn watch(&self, agent: AgentClient, gone: Gone) {
        let (runtime, told) = (self.clone(), gone.clone());
        tokio::spawn(async move {
            runtime.follow(agent).await;
            // The machine's own reason is the better one.
            tokio::time::sleep(REASON_PATIENCE).await;
            told.tell("the agent closed its connection".to_owned());
        });
        let runtime = self.clone();
        tokio::spawn(async move { runtime.machine_ended(&gone.reason().await).await });
    }

    /// Follows the agent's events to their end. Waits for nothing else: what is not taken is kept, and
    /// the guest could send without end.
    async fn follow(&self, agent: AgentClient) {
        let stream = agent.events(Context::default(), &agent::Empty::new()).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(e) => return warn!("follow the agent's events: {}", TaskError::from(e)),
        };
        let (ends, ended) = unbounded_channel();
        let inits = tokio::spawn(self.clone().inits_end(ended));
        let mut last_oom = HashMap::new();
        while let Ok(Some(event)) = stream.recv().await {
            match event.what {
                Some(agent::event::What::Exit(exit)) => self.exited(&exit, &ends),
                Some(agent::event::What::Oom(oom)) => {
                    let now = Instant::now();
                    let known = self.members().container(&oom.container_id).is_ok();
                    let last = last_oom.get(&oom.container_id);
                    if known && last.is_none_or(|&last| now - last >= OOM_INTERVAL) {
                        last_oom.insert(oom.container_id.clone(), now);
                        self.publish(TaskEvent::Oom(event::TaskOOM {
                            container_id: oom.container_id,
                            ..Default::default()
                        }));
                    }
                }
                Some(agent::event::What::MemoryWanted(wanted)) => {
                    if let Ok(machine) = self.members().sandbox() {
                        machine.memory.wanted(wanted.mib);
                    }
                }
                _ => {}
            }
        }
        // What it has said before its end is told before that.
        drop(ends);
        let _ = inits.await;
    }

    /// A process is over, by the guest's account, of which the first one counts.
    fn exited(&self, exit: &agent::Exit, inits: &UnboundedSender<End>) {
        let ids = exit.process.get_or_default();
        // One that is not known was deleted, or the guest makes it up.
        let Ok(process) = self.process(&ids.container_id, &ids.exec_id) else {
            return;
        };
        if !process.note_end_said() {
            return;
        }
        let exit = Exit {
            status: exit.status,
            // The guest's clock is its own.
            at: SystemTime::now(),
        };
        let id = ids.container_id.clone();
        if process.exec_id.is_empty() {
            // Fails when the events have just ended, which is an end of its own.
            let _ = inits.send(End { id, process, exit });
        } else {
            let runtime = self.clone();
            tokio::spawn(async move { runtime.ended(&id, &process, exit).await });
        }
    }

    /// Inits end one after another, or two of them could each leave the machine to the other.
    async fn inits_end(self, mut ends: UnboundedReceiver<End>) {
        while let Some(End { id, process, exit }) = ends.recv().await {
            let is_last = self.members().is_last(&id);
            if is_last && self.end_machine(&id, &process, exit).await {
                continue;
            }
            self.release(&id).await;
            self.ended(&id, &process, exit).await;
        }
    }

    /// Ends the machine of an init that is over, and tells the end then: a container that has stopped
    /// holds no memory, and its pid is no process any more, as with runc. Not while output is on
    /// its way to a slow reader: then Delete ends it.
    async fn end_machine(&self, id: &str, init: &Process, exit: Exit) -> bool {
        let processes = match self.members().container(id) {
            Ok(container) => container.processes(),
            Err(_) => return false,
        };
        let flushed = join_all(processes.iter().map(|process| process.flushed()));
        let flushed = tokio::time::timeout(OUTPUT_PATIENCE, flushed);
        if flushed.await.is_err() {
            return false;
        }
        init.note_last_word(exit);
        if let Err(e) = self.end_machine_of(id).await {
            // Delete tries again.
            warn!("end the machine of {id}: {}", chain(&e));
        }
        if self.members().sandbox().is_ok() {
            // Somebody has joined it in the meantime.
            return false;
        }
        self.machine_ended("its last container has stopped").await;
        true
    }

    /// The machine is over: so are all its processes.
    async fn machine_ended(&self, reason: &str) {
        let containers: Vec<_> = {
            let members = self.members();
            let containers = members.containers();
            containers
                .map(|container| (container.id.clone(), container.processes()))
                .collect()
        };
        for (id, processes) in containers {
            let running: Vec<_> = processes.iter().filter(|p| p.exit().is_none()).collect();
            let expected = processes
                .iter()
                .any(|process| process.last_word().is_some());
            if !expected && !running.is_empty() {
                let count = running.len();
                warn!("the machine of {id} ended under {count} processes: {reason}");
            }
            self.release(&id).await;
            for process in running {
                let lost = Exit {
                    status: LOST,
                    at: SystemTime::now(),
                };
                let exit = process.last_word().unwrap_or(lost);
                self.ended(&id, process, exit).await;
            }
        }
    }

    /// An init that was asked to end by SIGKILL does, whatever the guest says: when everybody in the machine
    /// was asked and somebody stays, the machine is ended.
    pub(super) fn insist(&self, id: &str, init: Arc<Process>) {
        if !init.note_killed() {
            return;
        }
        let (runtime, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            while timeout(KILL_PATIENCE, init.wait()).await.is_err() {
                let machine = {
                    let members = runtime.members();
                    if !members.all_killed(KILL_PATIENCE) {
                        continue;
                    }
                    members.sandbox().cloned()
                };
                if let Ok(machine) = machine {
                    machine.give_up(format!("SIGKILL does not end {id}")).await;
                }
                return;
            }
        });
    }

    /// A container ends with the process that stands for it on the host.
    pub(super) fn watch_stand_in(&self, id: &str, stand_ins: &StandIns) {
        let (runtime, id, ended) = (self.clone(), id.to_owned(), stand_ins.ended());
        tokio::spawn(async move {
            ended.await;
            // Fails when it has ended because the container has.
            let _ = runtime.kill(&id, "", SIGKILL, true).await;
        });
    }

    /// A process is over: says so, unless that is known.
    pub(super) async fn ended(&self, container_id: &str, process: &Process, exit: Exit) {
        // Waits for a Start that is under way: see `container`.
        let mut state = process.state.lock().await;
        if !process.stop(&mut state, exit) {
            return;
        }
        let container_id = container_id.to_owned();
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
}
