//! What leads from a namespace's interfaces to the cards: a tap beside each, and traffic control between the two.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use agent_protocol as agent;

use super::{Cards, NetworkError, ingress, inspect, namespace, redirect, tap};

/// What the taps are called; the kernel counts.
const TAPS: &str = "hull%d";

/// An interface of the namespace and the tap beside it, by their numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cable {
    pub(super) interface: u32,
    pub(super) tap: u32,
}

/// What a look at the namespace has found to be done.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Taps, each with its card: a descriptor for each pair of that one's queues.
    pub(super) taps: Vec<(usize, Vec<OwnedFd>)>,
    /// What the agent is to make of the cards.
    pub(super) configuration: agent::NetworkRequest,
}

/// Looks at the namespace, and connects each interface that is new to a tap. `plugged` is what each
/// card is then, whether all went well or not: what is half made has to be given back, too.
pub(super) async fn look(
    namespace: &File,
    with_taps: bool,
    cards: &Cards,
    plugged: &mut BTreeMap<usize, Option<Cable>>,
) -> Result<Change, NetworkError> {
    let handle = namespace::netlink(namespace)?;
    let network = inspect::inspect(&handle, with_taps).await?;
    let is_there = |index: u32| network.interfaces.iter().any(|it| it.index == index);
    for cable in plugged.values_mut() {
        if let Some(lost) = cable.take_if(|cable| !is_there(cable.interface)) {
            remove_tap(&handle, lost).await;
        }
    }
    let card_of = |plugged: &BTreeMap<usize, Option<Cable>>, index: u32| {
        let mut cables = plugged.iter();
        let leads = |cable: &Option<Cable>| cable.is_some_and(|it| it.interface == index);
        cables.find_map(|(card, cable)| leads(cable).then_some(*card))
    };
    let (mut taps, mut added) = (Vec::new(), Vec::new());
    for interface in &network.interfaces {
        if card_of(plugged, interface.index).is_some() {
            continue;
        }
        let idle = plugged.iter().find(|(_, cable)| cable.is_none());
        let idle = idle.map(|(&card, _)| card).or_else(|| cards.take());
        let card = idle.ok_or_else(|| NetworkError::NoCard(interface.name.clone()))?;
        plugged.insert(card, None);
        let (tap, cable) = plug(namespace, &handle, interface, cards.pairs(card)).await?;
        plugged.insert(card, Some(cable));
        taps.push((card, tap));
        added.push((interface, cable));
    }
    // Who has Swarm's ingress network has another one for what it asks others.
    if network.interfaces.len() > 1 && !added.is_empty() {
        let ports = ingress::ports(namespace)?;
        for (interface, cable) in added {
            ingress::publish(&handle, interface, cable, &ports).await?;
        }
    }
    let configuration = network.configuration(|index| card_of(plugged, index));
    Ok(Change {
        taps,
        configuration,
    })
}

/// A tap of so many queues to which all leads that arrives at the interface.
async fn plug(
    namespace: &File,
    handle: &rtnetlink::Handle,
    interface: &inspect::Interface,
    queues: u8,
) -> Result<(Vec<OwnedFd>, Cable), NetworkError> {
    let create = || {
        tap::create(TAPS, queues).map_err(|source| NetworkError::Tap {
            interface: interface.name.clone(),
            source,
        })
    };
    let (tap, name) = namespace::inside(namespace, create)?;
    let index = redirect::connect(handle, interface, &name).await?;
    let cable = Cable {
        interface: interface.index,
        tap: index,
    };
    Ok((tap, cable))
}

/// Removes a tap that leads nowhere any more. It may be gone: hull-vmm had the last descriptor.
pub(super) async fn remove_tap(handle: &rtnetlink::Handle, cable: Cable) {
    let _ = handle.link().del(cable.tap).execute().await;
}
