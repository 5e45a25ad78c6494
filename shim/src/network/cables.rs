//! What leads from a namespace's interfaces to the cards: a tap beside each, and traffic control between the two.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use agent_protocol as agent;
use vmm_control::SendError;

use super::{Cards, NetworkError, ingress, inspect, namespace, redirect, tap};
use crate::vmm_process::Control;

/// What the taps are called; the kernel counts.
const TAPS: &str = "hull%d";

/// An interface of the namespace and the tap beside it, by their numbers.
#[derive(Debug)]
pub(super) struct Cable {
    pub(super) interface: u32,
    pub(super) tap: u32,
    /// The tap, until the card has it: a descriptor for each pair of that one's queues.
    loose: Vec<OwnedFd>,
}

impl Cable {
    /// Gives the card the tap, if it has not got it yet.
    pub(super) fn plug(&mut self, card: usize, control: &Control) -> Result<(), SendError> {
        if !self.loose.is_empty() {
            control.plug(card, &self.loose)?;
            self.loose.clear();
        }
        Ok(())
    }
}

/// What a look at the namespace has found.
#[derive(Debug)]
pub(super) struct Found {
    /// What the agent is to make of the cards.
    pub(super) configuration: agent::NetworkRequest,
    /// Why some interface has no cable, although it is new. Others have theirs.
    pub(super) failed: Option<NetworkError>,
}

/// Looks at the namespace, and lays a cable from each interface that is new. `plugged` is what each
/// card is then, whether all went well or not: what is half made has to be given back, too.
pub(super) async fn look(
    namespace: &File,
    with_taps: bool,
    cards: &Cards,
    plugged: &mut BTreeMap<usize, Option<Cable>>,
) -> Result<Found, NetworkError> {
    let handle = namespace::netlink(namespace)?;
    let network = inspect::inspect(&handle, with_taps).await?;
    let is_there = |index: u32| network.interfaces.iter().any(|it| it.index == index);
    for cable in plugged.values_mut() {
        if let Some(lost) = cable.take_if(|cable| !is_there(cable.interface)) {
            remove_tap(&handle, &lost).await;
        }
    }
    let card_of = |plugged: &BTreeMap<usize, Option<Cable>>, index: u32| {
        let mut cables = plugged.iter();
        let leads = |cable: &Option<Cable>| matches!(cable, Some(it) if it.interface == index);
        cables.find_map(|(card, cable)| leads(cable).then_some(*card))
    };
    let (mut added, mut failed) = (Vec::new(), None);
    for interface in &network.interfaces {
        if card_of(plugged, interface.index).is_some() {
            continue;
        }
        let idle = plugged.iter().find(|(_, cable)| cable.is_none());
        let idle = idle.map(|(&card, _)| card).or_else(|| cards.take());
        let Some(card) = idle else {
            failed.get_or_insert(NetworkError::NoCard(interface.name.clone()));
            continue;
        };
        plugged.insert(card, None);
        match lay(namespace, &handle, interface, cards.pairs(card)).await {
            Ok(cable) => {
                added.push((interface, cable.tap));
                plugged.insert(card, Some(cable));
            }
            Err(e) => drop(failed.get_or_insert(e)),
        }
    }
    // Who has Swarm's ingress network has another one for what it asks others.
    if network.interfaces.len() > 1 && !added.is_empty() {
        let ports = ingress::ports(namespace)?;
        for (interface, tap) in added {
            ingress::publish(&handle, interface, tap, &ports).await?;
        }
    }
    let configuration = network.configuration(|index| card_of(plugged, index));
    Ok(Found {
        configuration,
        failed,
    })
}

/// A tap of so many queues to which all leads that arrives at the interface.
async fn lay(
    namespace: &File,
    handle: &rtnetlink::Handle,
    interface: &inspect::Interface,
    queues: u8,
) -> Result<Cable, NetworkError> {
    let create = || {
        tap::create(TAPS, queues).map_err(|source| NetworkError::Tap {
            interface: interface.name.clone(),
            source,
        })
    };
    let (loose, name) = namespace::inside(namespace, create)?;
    let tap = redirect::connect(handle, interface, &name).await?;
    Ok(Cable {
        interface: interface.index,
        tap,
        loose,
    })
}

/// Removes a tap that leads nowhere any more. It may be gone: hull-vmm had the last descriptor.
pub(super) async fn remove_tap(handle: &rtnetlink::Handle, cable: &Cable) {
    let _ = handle.link().del(cable.tap).execute().await;
}
