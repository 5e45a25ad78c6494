//! What the namespace's network is: its Ethernet interfaces, and what belongs to them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_protocol as agent;
use futures::{Stream, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use vmm_control::MacAddress;

use super::{NetworkError, TAP, card};

/// An Ethernet interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    /// Number in its namespace.
    pub(super) index: u32,
    /// Name in its namespace, and in the guest.
    pub(super) name: String,
    mac: MacAddress,
    mtu: u32,
    addresses: Vec<(IpAddr, u8)>,
}

impl Interface {
    /// Its MTU in bytes.
    pub(super) fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Whether that is one of its addresses.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|&(ip, _)| ip == address)
    }

    /// Whether it speaks IPv6.
    pub(super) fn has_v6(&self) -> bool {
        self.addresses.iter().any(|(ip, _)| ip.is_ipv6())
    }

    /// The same for the agent, for which it is a card.
    fn described(&self, number: usize) -> agent::Interface {
        let addresses = self.addresses.iter();
        agent::Interface {
            card: card(number).to_string(),
            name: self.name.clone(),
            mac: self.mac.to_string(),
            mtu: self.mtu,
            addresses: addresses
                .map(|(ip, length)| format!("{ip}/{length}"))
                .collect(),
            ..Default::default()
        }
    }
}

/// A namespace's network.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) interfaces: Vec<Interface>,
    routes: Vec<agent::Route>,
    neighbours: Vec<agent::Neighbour>,
}

/// Asks the kernel of this thread's namespace; with `taps` also for those that are none of ours.
pub(super) async fn inspect(handle: &Handle, taps: bool) -> Result<Network, NetworkError> {
    let links = all("list network interfaces", handle.link().get().execute()).await?;
    let mut interfaces: Vec<_> = links.iter().filter_map(|it| interface(it, taps)).collect();
    interfaces.sort_by_key(|interface| interface.index);
    for message in all("list addresses", handle.address().get().execute()).await? {
        let index = message.header.index;
        if let Some(interface) = interfaces.iter_mut().find(|it| it.index == index) {
            interface.addresses.extend(address(&message));
        }
    }
    let names: HashMap<u32, String> = (interfaces.iter())
        .map(|interface| (interface.index, interface.name.clone()))
        .collect();
    let v4 = handle
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let v6 = handle
        .route()
        .get(RouteMessageBuilder::<Ipv6Addr>::new().build());
    let mut messages = all("list routes", v4.execute()).await?;
    messages.extend(all("list routes", v6.execute()).await?);
    let neighbours = all("list neighbours", handle.neighbours().get().execute()).await?;
    Ok(Network {
        routes: messages.iter().filter_map(|it| route(it, &names)).collect(),
        neighbours: (neighbours.iter())
            .filter_map(|it| neighbour(it, &names))
            .collect(),
        interfaces,
    })
}

impl Network {
    /// The same for the agent; `card_of` says which card an interface is, by its number.
    pub(super) fn configuration(
        &self,
        card_of: impl Fn(u32) -> Option<usize>,
    ) -> agent::NetworkRequest {
        let interface = |of: &Interface| Some(of.described(card_of(of.index)?));
        agent::NetworkRequest {
            interfaces: self.interfaces.iter().filter_map(interface).collect(),
            routes: self.routes.clone(),
            neighbours: self.neighbours.clone(),
            ..Default::default()
        }
    }
}

async fn all<T>(
    what: &str,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, NetworkError> {
    let collected: Result<Vec<T>, _> = messages.try_collect().await;
    collected.map_err(|source| NetworkError::Netlink {
        what: what.to_owned(),
        source,
    })
}

fn interface(link: &LinkMessage, taps: bool) -> Option<Interface> {
    let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
    if !ethernet || !link.header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        mac: MacAddress([0; 6]),
        mtu: 1500,
        addresses: Vec::new(),
    };
    let mut is_tap = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(info) => {
                is_tap = info.contains(&LinkInfo::Kind(InfoKind::Tun));
            }
            LinkAttribute::Address(mac) => {
                found.mac = MacAddress(mac.as_slice().try_into().ok()?);
            }
            _ => {}
        }
    }
    // As a rule what leads to a tap, ours or somebody's, is another interface.
    let counts = !is_tap || taps && !found.name.starts_with(TAP);
    (counts && !found.name.is_empty()).then_some(found)
}

fn address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            // On a point-to-point link the peer's.
            AddressAttribute::Address(ip) => any = Some(*ip),
            _ => {}
        }
    }
    Some((local.or(any)?, message.header.prefix_len))
}

/// A route of the main table that somebody has made: those that the kernel makes for an address it
/// makes in the guest, too.
fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<agent::Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || header.protocol == RouteProtocol::Kernel
    {
        return None;
    }
    let mut route = agent::Route::new();
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface.clone_from(names.get(index)?),
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => route.gateway = ip(address)?.to_string(),
            RouteAttribute::PrefSource(address) => route.source = ip(address)?.to_string(),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    let any = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let length = header.destination_prefix_length;
    route.destination = format!("{}/{length}", destination.unwrap_or(any));
    (!route.interface.is_empty()).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// An entry that somebody has made; the others the guest finds out.
fn neighbour(message: &NeighbourMessage, names: &HashMap<u32, String>) -> Option<agent::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = agent::Neighbour {
        interface: names.get(&message.header.ifindex)?.clone(),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                neighbour.address = ip.to_string();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                neighbour.address = ip.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => {
                neighbour.mac = MacAddress(mac.as_slice().try_into().ok()?).to_string();
            }
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && !neighbour.mac.is_empty()).then_some(neighbour)
}
