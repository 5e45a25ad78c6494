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
    /// Which ports its containers may bind.
    allowed: Arc<AllowedPorts>,
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
            .join_host(&config.pasta, user, &sandbox.account)
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
            allowed: AllowedPorts::from(first.unwrap_or(USUALLY)),
            watcher,
            pasta,
        }))
    }

    /// Lets its containers have privileged ports of the host, as long as what is returned is there: it is for the
    /// lifetime of a container that may.
    pub(super) fn allow_privileged_ports(&self) -> PrivilegedPorts {
        PrivilegedPorts::new(&self.allowed)
    }

    /// Follows its containers' sockets. Again is no error.
    pub(super) fn follow_ports(&self) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.network.number();
        ports.get_or_insert_with(|| follow(number, &self.allowed.lowest, &self.agent, &self.vsock));
    }

    /// Disconnects it.
    pub(super) async fn end(self) {
        drop(self.ports);
        drop(self.watcher);
        self.pasta.end(Duration::ZERO).await;
    }
}

/// The ports of the host that the containers of a network may have.
struct AllowedPorts {
    /// The first of them now.
    lowest: Arc<AtomicU16>,
    /// The first that takes no capability.
    unprivileged: u16,
    /// Containers that may have others. Guards `lowest`, too.
    privileged: Mutex<usize>,
}

/// A container that may have privileged ports. In the guest a socket is its network's, and nobody's in
/// particular: those who share the network may as long as this one is there.
pub(super) struct PrivilegedPorts(Arc<AllowedPorts>);

impl AllowedPorts {
    fn from(unprivileged: u16) -> Arc<Self> {
        Arc::new(Self {
            lowest: Arc::new(AtomicU16::new(unprivileged)),
            unprivileged,
            privileged: Mutex::new(0),
        })
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        let mut privileged = (self.privileged.lock()).unwrap_or_else(PoisonError::into_inner);
        *privileged = change(*privileged);
        let lowest = if *privileged > 0 {
            1
        } else {
            self.unprivileged
        };
        self.lowest.store(lowest, Ordering::Relaxed);
    }
}

impl PrivilegedPorts {
    fn new(allowed: &Arc<AllowedPorts>) -> Self {
        allowed.count(|privileged| privileged + 1);
        Self(Arc::clone(allowed))
    }
}

impl Drop for PrivilegedPorts {
    fn drop(&mut self) {
        // Each was counted once.
        self.0.count(|privileged| privileged - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_ports_are_had_as_long_as_somebody_may_have_them() {
        let allowed = AllowedPorts::from(1024);
        let lowest = || allowed.lowest.load(Ordering::Relaxed);
        assert_eq!(lowest(), 1024);
        let first = PrivilegedPorts::new(&allowed);
        let second = PrivilegedPorts::new(&allowed);
        drop(first);
        assert_eq!(lowest(), 1);
        drop(second);
        assert_eq!(lowest(), 1024);
    }
}
