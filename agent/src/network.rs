//! Network cards become the interfaces that the container's engine has made on the host: names,
//! addresses, routes and neighbours are the same here.
//!
//! Threat: none of its own; what comes in is the shim's. Names end up in the kernel alone.

use std::collections::HashMap;
use std::fs::File;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::ParseIntError;
use std::os::fd::AsRawFd;

use agent_protocol::{Interface, Neighbour, NetworkRequest, Route};
use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// The namespace that this process is in.
const THIS_NAMESPACE: &str = "/proc/self/ns/net";

/// Why the network is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The namespace of the container, or that of the idle cards.
    #[error("enter a network namespace")]
    Namespace(#[source] std::io::Error),
    /// A text that is not what it stands for.
    #[error("{0:?} is no {1}")]
    Text(String, &'static str),
    /// No card with this hardware address, or no interface of this name.
    #[error("there is no network card {0:?}")]
    Unknown(String),
    /// The kernel refuses.
    #[error("{what}")]
    Kernel {
        /// What was to be done.
        what: String,
        /// What it said.
        source: rtnetlink::Error,
    },
}

/// The network cards, and what the host has described last. Those that are no interface are kept apart,
/// in a namespace of their own: a container sees its interfaces and no other.
pub struct Network {
    idle: File,
    /// Held over a change: one after the other.
    last: Mutex<NetworkRequest>,
}

impl Network {
    /// With the namespace that all cards are in.
    pub fn new(idle: File) -> Self {
        Self {
            idle,
            last: Mutex::default(),
        }
    }

    /// Makes the cards what a request describes, and undoes what an earlier one described and this
    /// one does not. What the container has made itself stays. Neighbours go with their interface.
    ///
    /// # Errors
    /// All of `NetworkError`; what was done before it stays.
    pub async fn configure(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        let mut last = self.last.lock().await;
        let here = File::open(THIS_NAMESPACE).map_err(NetworkError::Namespace)?;
        let (handle, served) = connection()?;
        let (idle, idle_served) = inside(&self.idle, &here, connection)??;
        undo(&handle, &self.idle, &last, request).await;
        let configured = async {
            fetch(&idle, &handle, &here, request).await?;
            configure_with(&handle, request).await
        };
        let configured = configured.await;
        served.abort();
        idle_served.abort();
        last.clone_from(request);
        configured
    }
}

/// A connection to the kernel for the namespace that this process is in, and the task that serves it.
fn connection() -> Result<(Handle, JoinHandle<()>), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    Ok((handle, tokio::spawn(connection)))
}

/// Runs `work` in a namespace. The process has one thread, and comes back.
fn inside<T>(there: &File, here: &File, work: impl FnOnce() -> T) -> Result<T, NetworkError> {
    let enter = |namespace: &File| {
        let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
        entered.map_err(|errno| NetworkError::Namespace(errno.into()))
    };
    enter(there)?;
    let done = work();
    enter(here)?;
    Ok(done)
}

/// Brings the cards that a request names here, if they are not.
async fn fetch(
    idle: &Handle,
    handle: &Handle,
    here: &File,
    request: &NetworkRequest,
) -> Result<(), NetworkError> {
    let present = links(handle).await?;
    let waiting = links(idle).await?;
    for interface in &request.interfaces {
        if index_of(&present, interface).is_ok() {
            continue;
        }
        let index = index_of(&waiting, interface)?;
        let named = LinkUnspec::new_with_index(index).name(idle_name(index));
        let named = idle.link().set(named.build()).execute();
        named.await.map_err(kernel("name a network card"))?;
        let moved = LinkUnspec::new_with_index(index).setns_by_fd(here.as_raw_fd());
        let moved = idle.link().set(moved.build()).execute();
        moved.await.map_err(kernel("move a network card"))?;
    }
    Ok(())
}

/// A name that is in nobody's way.
fn idle_name(index: u32) -> String {
    format!("card{index}")
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let links = handle.link().get().execute().try_collect().await;
    links.map_err(kernel("list network cards"))
}

/// Undoes what `last` has and `next` has not. What is not there any more needs no undoing.
async fn undo(handle: &Handle, idle: &File, last: &NetworkRequest, next: &NetworkRequest) {
    let Ok(links) = links(handle).await else {
        return;
    };
    let index = |name: &str| {
        let interface = last.interfaces.iter().find(|it| it.name == name)?;
        index_of(&links, interface).ok()
    };
    for route in last.routes.iter().filter(|it| !next.routes.contains(it)) {
        let message = index(&route.interface).map(|index| route_message(index, route));
        if let Some(Ok(message)) = message {
            let _ = handle.route().del(message).execute().await;
        }
    }
    for interface in &last.interfaces {
        let Ok(index) = index_of(&links, interface) else {
            continue;
        };
        let same_card = |it: &&Interface| it.card == interface.card;
        let kept = next.interfaces.iter().find(same_card);
        let stays = |address: &String| kept.is_some_and(|it| it.addresses.contains(address));
        for address in interface.addresses.iter().filter(|it| !stays(it)) {
            remove_address(handle, index, address).await;
        }
        if kept.is_none() {
            take_down(handle, idle, index, interface).await;
        }
    }
}

async fn remove_address(handle: &Handle, index: u32, address: &str) {
    let Ok((ip, length)) = prefix(address) else {
        return;
    };
    let mut request = handle.address().get();
    request = request.set_link_index_filter(index).set_address_filter(ip);
    let found: Result<Vec<_>, _> = request.execute().try_collect().await;
    for message in found.unwrap_or_default() {
        if message.header.prefix_len == length {
            let _ = handle.address().del(message).execute().await;
        }
    }
}

/// A card that is no interface any more gets its own address back, by which it is found, and goes to
/// the idle ones.
async fn take_down(handle: &Handle, idle: &File, index: u32, interface: &Interface) {
    let down = LinkUnspec::new_with_index(index).down();
    let _ = handle.link().set(down.build()).execute().await;
    if let Ok(mac) = hardware_address(&interface.card) {
        let card = LinkUnspec::new_with_index(index)
            .name(idle_name(index))
            .address(mac);
        let _ = handle.link().set(card.build()).execute().await;
    }
    let gone = LinkUnspec::new_with_index(index).setns_by_fd(idle.as_raw_fd());
    let _ = handle.link().set(gone.build()).execute().await;
}

async fn configure_with(handle: &Handle, request: &NetworkRequest) -> Result<(), NetworkError> {
    let links = links(handle).await?;
    let mut indexes = HashMap::new();
    for interface in &request.interfaces {
        let index = index_of(&links, interface)?;
        bring_up(handle, index, interface).await?;
        indexes.insert(interface.name.as_str(), index);
    }
    let find = |name: &str| {
        let index = indexes.get(name).copied();
        index.ok_or_else(|| NetworkError::Unknown(name.to_owned()))
    };
    // Routes on the link first: gateways have to be on one.
    let (direct, via): (Vec<&Route>, Vec<&Route>) =
        (request.routes.iter()).partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via) {
        add_route(handle, find(&route.interface)?, route).await?;
    }
    for neighbour in &request.neighbours {
        add_neighbour(handle, find(&neighbour.interface)?, neighbour).await?;
    }
    Ok(())
}

/// A card is known by the address it was made with, or has its interface's already.
fn index_of(links: &[LinkMessage], interface: &Interface) -> Result<u32, NetworkError> {
    let [card, mac] = [&interface.card, &interface.mac].map(|text| hardware_address(text));
    let (card, mac) = (card?, mac?);
    let has = |link: &LinkMessage, wanted: &[u8]| {
        (link.attributes.iter())
            .any(|it| matches!(it, LinkAttribute::Address(address) if address == wanted))
    };
    let found = links.iter().find(|link| has(link, &card));
    let found = found.or_else(|| links.iter().find(|link| has(link, &mac)));
    found
        .map(|link| link.header.index)
        .ok_or_else(|| NetworkError::Unknown(interface.card.clone()))
}

async fn bring_up(handle: &Handle, index: u32, interface: &Interface) -> Result<(), NetworkError> {
    let name = &interface.name;
    let change = LinkUnspec::new_with_index(index)
        .name(name)
        .address(hardware_address(&interface.mac)?)
        .mtu(interface.mtu);
    let change = handle.link().set(change.build()).execute();
    change.await.map_err(kernel(&format!("set up {name}")))?;
    // The host has the link-local address, too, and says which: this kernel makes none up.
    let own = format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode");
    if let Err(error) = std::fs::write(&own, "1") {
        log::warn!("{own}: {error}");
    }
    let up = LinkUnspec::new_with_index(index).up();
    let up = handle.link().set(up.build()).execute();
    up.await.map_err(kernel(&format!("bring {name} up")))?;
    for address in &interface.addresses {
        let (ip, length) = prefix(address)?;
        let mut request = handle.address().add(index, ip, length).replace();
        // The host's interface has the address: nobody else does, and nothing is to be waited for.
        if ip.is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        let added = request.execute().await;
        added.map_err(kernel(&format!("give {name} the address {address}")))?;
    }
    Ok(())
}

fn route_message(index: u32, route: &Route) -> Result<RouteMessage, NetworkError> {
    let (destination, length) = prefix(&route.destination)?;
    let gateway = optional_ip(&route.gateway)?;
    let source = optional_ip(&route.source)?;
    Ok(match (destination, gateway, source) {
        (IpAddr::V4(to), None | Some(IpAddr::V4(_)), None | Some(IpAddr::V4(_))) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, length)
                .output_interface(index);
            if let Some(IpAddr::V4(gateway)) = gateway {
                builder = builder.gateway(gateway);
            } else {
                builder = builder.scope(rtnetlink::packet_route::route::RouteScope::Link);
            }
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            with_metric(builder.build(), route.metric)
        }
        (IpAddr::V6(to), None | Some(IpAddr::V6(_)), None | Some(IpAddr::V6(_))) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, length)
                .output_interface(index);
            if let Some(IpAddr::V6(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            with_metric(builder.build(), route.metric)
        }
        _ => {
            return Err(NetworkError::Text(
                route.gateway.clone(),
                "gateway of this route",
            ));
        }
    })
}

async fn add_route(handle: &Handle, index: u32, route: &Route) -> Result<(), NetworkError> {
    let message = route_message(index, route)?;
    let added = handle.route().add(message).replace().execute().await;
    added.map_err(kernel(&format!("add the route to {}", route.destination)))
}

fn with_metric(mut message: RouteMessage, metric: u32) -> RouteMessage {
    if metric != 0 {
        let attribute = rtnetlink::packet_route::route::RouteAttribute::Priority(metric);
        message.attributes.push(attribute);
    }
    message
}

async fn add_neighbour(
    handle: &Handle,
    index: u32,
    neighbour: &Neighbour,
) -> Result<(), NetworkError> {
    let ip = self::ip(&neighbour.address)?;
    let mac = hardware_address(&neighbour.mac)?;
    let added = handle.neighbours().add(index, ip).link_layer_address(&mac);
    let added = added.replace().execute().await;
    added.map_err(kernel(&format!("add the neighbour {ip}")))
}

fn kernel(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.to_owned();
    |source| NetworkError::Kernel { what, source }
}

fn ip(text: &str) -> Result<IpAddr, NetworkError> {
    let parsed: Result<IpAddr, AddrParseError> = text.parse();
    parsed.map_err(|_| NetworkError::Text(text.to_owned(), "IP address"))
}

fn optional_ip(text: &str) -> Result<Option<IpAddr>, NetworkError> {
    if text.is_empty() {
        return Ok(None);
    }
    ip(text).map(Some)
}

/// `ADDRESS/LENGTH`.
fn prefix(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let wrong = || NetworkError::Text(text.to_owned(), "IP address with a prefix length");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address = ip(address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.parse() {
        Ok(length) if length <= most => Ok((address, length)),
        _ => Err(wrong()),
    }
}

fn hardware_address(text: &str) -> Result<Vec<u8>, NetworkError> {
    let bytes: Result<Vec<u8>, ParseIntError> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    match bytes {
        Ok(bytes) if bytes.len() == 6 => Ok(bytes),
        _ => Err(NetworkError::Text(text.to_owned(), "Ethernet address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_checked() {
        let read = |text| prefix(text).unwrap();
        assert_eq!(
            read("192.0.2.2/24"),
            (Ipv4Addr::new(192, 0, 2, 2).into(), 24)
        );
        assert_eq!(read("::/0"), (Ipv6Addr::UNSPECIFIED.into(), 0));
        for bad in [
            "192.0.2.2",
            "192.0.2.2/33",
            "192.0.2/24",
            "::/129",
            "::/-1",
            "",
        ] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_read_and_checked() {
        assert_eq!(
            hardware_address("02:68:75:6c:6c:00").unwrap(),
            b"\x02hull\0"
        );
        for bad in ["02:68:75:6c:6c", "02:68:75:6c:6c:100", "x", ""] {
            assert!(hardware_address(bad).is_err(), "{bad}");
        }
    }
}
