//! A machine's way to the host's own network, which its containers with that network share.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::AgentClient;
use tokio::task::JoinSet;

use super::Result;
use crate::config::Config;
use crate::error::TaskError;
use crate::network::Network;
use crate::port_forward::Forwards;
use crate::port_forward::follow::follow;
use crate::ports::Ports;
use crate::sandbox::Sandbox;
use crate::supervise::Supervised;
use crate::users;

/// Below this a port takes CAP_NET_BIND_SERVICE on the host (ip-sysctl.rst).
const FIRST_UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What it is unless somebody has changed it.
const USUALLY: u16 = 1024;

/// A network that stands for the host's own, as long as it is connected to that.
pub(super) struct HostNetwork {
    network: Network,
    agent: AgentClient,
    vsock: Arc<Ports>,
    /// The ports of its containers that are the host's, from when one of them starts.
    ports: Mutex<Option<Forwards>>,
    /// The first port that its containers may bind.
    lowest: Arc<AtomicU16>,
    /// Ends the machine with pasta. Dropped before that is ended.
    watcher: JoinSet<()>,
    pasta: Supervised,
}

impl HostNetwork {
    /// Connects a network of the sandbox to the host's.
    pub(super) async fn start(
        sandbox: &Sandbox,
        network: &Network,
        config: &Config,
    ) -> Result<Arc<Self>> {
        let user = users::of(&sandbox.state).ok_or_else(|| {
            TaskError::Failed("the sandbox's folder does not say which user it has".into())
        })?;
        let joined = network
            .join_host(&config.pasta, user, sandbox.cgroup.as_deref())
            .await;
        let pasta = joined.map_err(|e| TaskError::failed(&e))?;
        if let Err(e) = sandbox.state.note_process(pasta.pid) {
            pasta.end(Duration::ZERO).await;
            return Err(TaskError::failed(&e));
        }
        let (gone, ended) = (sandbox.gone.clone(), pasta.ended());
        let mut watcher = JoinSet::new();
        watcher.spawn(async move { gone.tell(ended.await) });
        let first = std::fs::read_to_string(FIRST_UNPRIVILEGED);
        let first = first.ok().and_then(|text| text.trim().parse().ok());
        Ok(Arc::new(Self {
            network: network.clone(),
            agent: sandbox.agent.clone(),
            vsock: Arc::clone(&sandbox.ports),
            ports: Mutex::default(),
            lowest: Arc::new(AtomicU16::new(first.unwrap_or(USUALLY))),
            watcher,
            pasta,
        }))
    }

    /// Lets its containers have privileged ports of the host.
    pub(super) fn allow_privileged_ports(&self) {
        self.lowest.store(1, Ordering::Relaxed);
    }

    /// Follows its containers' sockets. Again is no error.
    pub(super) fn follow_ports(&self) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.network.number();
        ports.get_or_insert_with(|| follow(number, &self.lowest, &self.agent, &self.vsock));
    }

    /// Disconnects it.
    pub(super) async fn end(self) {
        drop(self.ports);
        drop(self.watcher);
        self.pasta.end(Duration::ZERO).await;
    }
}
