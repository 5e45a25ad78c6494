//! What is made on the host for a container in a machine: what stands for its processes, and its way
//! to the host's own network.

use std::sync::Arc;

use super::Result;
use super::host_network::{HostNetwork, PrivilegedPorts};
use super::members::Others;
use crate::bundle;
use crate::config::Config;
use crate::error::TaskError;
use crate::network::Network;
use crate::port_forward::Forwards;
use crate::sandbox::Sandbox;
use crate::spawn::Place;
use crate::stand_ins::StandIns;

/// What is on the host for a container, as long as it runs.
#[derive(Default)]
pub(super) struct OnHost {
    /// What stands for its processes.
    pub(super) stand_ins: Option<Arc<StandIns>>,
    /// What connects it to the host's own network.
    pub(super) host_network: Option<Arc<HostNetwork>>,
    /// That it may have privileged ports there.
    pub(super) privileged_ports: Option<PrivilegedPorts>,
    /// The network that it is in, if that is one of the host's, too.
    pub(super) network: Option<Network>,
    /// Its ports of the host, served as long as this is here.
    pub(super) forwards: Forwards,
}

impl OnHost {
    /// Lets the container's network have privileged ports of the host, if it has any of that.
    pub(super) fn allow(&mut self, privileged_ports: bool) {
        let host_network = (self.host_network.as_ref()).filter(|_| privileged_ports);
        self.privileged_ports = host_network.map(|of| of.allow_privileged_ports());
    }
}

/// The process that stands on the host for a container, in the network that is at `place`.
pub(super) async fn stand_in(
    sandbox: &Sandbox,
    id: &str,
    place: &Place<'_>,
) -> Result<Arc<StandIns>> {
    let stand_ins = StandIns::start(id, place, &sandbox.account);
    let stand_ins = stand_ins.map_err(|e| TaskError::failed(&e))?;
    if let Err(e) = sandbox.state.note_process(stand_ins.pid()) {
        stand_ins.end().await;
        return Err(TaskError::failed(&e));
    }
    Ok(stand_ins)
}

/// The same for a container which joins, and what else it needs on the host.
pub(super) async fn beside(
    sandbox: &Sandbox,
    id: &str,
    wanted: &bundle::Network,
    others: &Others,
    config: &Config,
) -> Result<(Arc<StandIns>, OnHost)> {
    let shared = match wanted {
        bundle::Network::Of(id) => others.network(id),
        bundle::Network::Machine => Some(&sandbox.network),
        bundle::Network::Host | bundle::Network::Own(_) => None,
    };
    let place = match (wanted, shared) {
        (_, Some(network)) => Place::In(network.namespace()),
        (bundle::Network::Own(Some(path)), None) => Place::At(path),
        (bundle::Network::Own(None) | bundle::Network::Host, None) => Place::New,
        // Of a container that shares no network with the host.
        (bundle::Network::Machine | bundle::Network::Of(_), None) => {
            Place::In(sandbox.network.namespace())
        }
    };
    let stand_ins = stand_in(sandbox, id, &place).await?;
    let networks = async {
        match wanted {
            bundle::Network::Own(_) | bundle::Network::Host => {
                let network = sandbox.cards.network_of(stand_ins.pid());
                let network = network.map_err(|e| TaskError::failed(&e))?;
                let mut host_network = None;
                if *wanted == bundle::Network::Host {
                    host_network = Some(HostNetwork::start(sandbox, &network, config).await?);
                }
                Ok((Some(network), host_network))
            }
            bundle::Network::Machine | bundle::Network::Of(_) => {
                let host_network = shared.and_then(|network| others.host_network(network));
                Ok((shared.cloned(), host_network))
            }
        }
    };
    match networks.await {
        Ok((network, host_network)) => {
            let on_host = OnHost {
                stand_ins: Some(Arc::clone(&stand_ins)),
                host_network,
                network,
                ..OnHost::default()
            };
            Ok((stand_ins, on_host))
        }
        Err(e) => {
            stand_ins.end().await;
            Err(e)
        }
    }
}
