//! Network cards become the interfaces that the containers' engine has made on the host: names,
//! addresses, routes and neighbours are the same here.
//!
//! A network is that of a namespace: the agent's own for the machine's first container, if it has no
//! user namespace, and one of their own for others that do not join a network. A card moves to where
//! it is an interface, and when it is none any more back to the namespace that the machine has booted
//! with, which the agent has left: no container sees it there.
//!
//! Threat: what comes in is the shim's, and its names end up in the kernel alone. A container that may
//! change its network can spoil its own: take a card away for good, too, until its namespace ends.

mod cards;
mod channels;
mod namespace;
mod routes;
mod shared_addresses;
mod text;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use agent_protocol::{Interface, NetworkRequest, Route};
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use tokio::sync::Mutex;

use self::channels::Drivers;
use self::text::{hardware_address, prefix};
use crate::socket_programs::SocketPrograms;

pub use self::namespace::Namespace;

/// Why the network is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace cannot be entered, or there is no netlink socket in it.
    #[error("open a netlink socket in the container's network namespace")]
    Namespace(#[source] io::Error),
    /// A text that is not what it stands for.
    #[error("{0:?} is no {1}")]
    Text(String, &'static str),
    /// Nobody is in it.
    #[error("container {0:?}, whose network is to be set up, is not here")]
    NoContainer(String),
    /// The kernel refuses the programs.
    #[error("redirect what is sent to the addresses that the host has, too")]
    SharedAddresses(#[source] io::Error),
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

/// The networks that the host has described, by their numbers.
pub struct Networks {
    /// Where the cards are that are no interface.
    idle: Namespace,
    /// Held over a change: one after the other.
    known: Mutex<HashMap<u32, Network>>,
}

/// A network, and how the host has described it last.
struct Network {
    namespace: Namespace,
    last: NetworkRequest,
    /// For one that stands for the host's own.
    shared_addresses: Option<SocketPrograms>,
}

impl Networks {
    /// None yet; all cards are in `idle`.
    pub fn new(idle: Namespace) -> Self {
        Self {
            idle,
            known: Mutex::default(),
        }
    }

    /// Makes the cards what a request describes, and undoes what an earlier one for this network
    /// described and this one does not. What the container has made itself stays. Neighbours go with
    /// their interface. A network that is new is that of `namespace`.
    ///
    /// # Errors
    /// All of `NetworkError`; what was done before it stays.
    pub async fn configure(
        &self,
        request: &NetworkRequest,
        namespace: Option<Namespace>,
    ) -> Result<(), NetworkError> {
        let mut known = self.known.lock().await;
        let network = match known.entry(request.network) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Network {
                namespace: namespace
                    .ok_or_else(|| NetworkError::NoContainer(request.container_id.clone()))?,
                last: NetworkRequest::default(),
                shared_addresses: None,
            }),
        };
        network.become_as(request, &self.idle).await
    }

    /// The namespace of a network that is known.
    ///
    /// # Errors
    /// What the kernel says; there may be no such network.
    pub async fn namespace(&self, number: u32) -> io::Result<Namespace> {
        let known = self.known.lock().await;
        let network = known.get(&number).ok_or(io::ErrorKind::NotFound)?;
        network.namespace.try_clone()
    }

    /// Takes a network's cards back and forgets it. One that is not known needs no forgetting.
    ///
    /// # Errors
    /// `Namespace`, `Kernel`.
    pub async fn disconnect(&self, number: u32) -> Result<(), NetworkError> {
        let mut known = self.known.lock().await;
        match known.remove(&number) {
            Some(mut network) => {
                network
                    .become_as(&NetworkRequest::default(), &self.idle)
                    .await
            }
            None => Ok(()),
        }
    }
}

impl Network {
    async fn become_as(
        &mut self,
        request: &NetworkRequest,
        idle: &Namespace,
    ) -> Result<(), NetworkError> {
        let home = idle.netlink().map_err(NetworkError::Namespace)?;
        let there = self.namespace.netlink().map_err(NetworkError::Namespace)?;
        undo(&there.handle, &self.last, request, idle).await;
        self.last.clone_from(request);
        let interfaces = &request.interfaces;
        cards::bring(interfaces, (&self.namespace, &there.handle), &home.handle).await?;
        let drivers = Drivers::of(&self.namespace);
        configure(&there.handle, drivers.as_ref(), request).await?;
        if request.hosts && self.shared_addresses.is_none() {
            let interfaces = request.interfaces.iter();
            let addresses = interfaces.flat_map(|interface| &interface.addresses);
            let addresses: Result<Vec<_>, _> = addresses.map(|address| prefix(address)).collect();
            let addresses = addresses?.into_iter().map(|(ip, _)| ip);
            let shared = shared_addresses::share(&self.namespace, addresses);
            self.shared_addresses = Some(shared.map_err(NetworkError::SharedAddresses)?);
        }
        Ok(())
    }
}

/// Undoes what `last` has and `next` has not. What is not there any more needs no undoing.
async fn undo(handle: &Handle, last: &NetworkRequest, next: &NetworkRequest, home: &Namespace) {
    let Ok(links) = cards::links(handle).await else {
        return;
    };
    let index = |name: &str| {
        let interface = last.interfaces.iter().find(|it| it.name == name)?;
        cards::index_of(&links, interface).ok()
    };
    for route in last.routes.iter().filter(|it| !next.routes.contains(it)) {
        let message = index(&route.interface).map(|index| routes::route_message(index, route));
        if let Some(Ok(message)) = message {
            let _ = handle.route().del(message).execute().await;
        }
    }
    for interface in &last.interfaces {
        let Ok(index) = cards::index_of(&links, interface) else {
            continue;
        };
        let same_card = |it: &&Interface| it.card == interface.card;
        let kept = next.interfaces.iter().find(same_card);
        let stays = |address: &String| kept.is_some_and(|it| it.addresses.contains(address));
        for address in interface.addresses.iter().filter(|it| !stays(it)) {
            remove_address(handle, index, address).await;
        }
        if kept.is_none() {
            cards::take_down(handle, index, interface, home).await;
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

/// Everything of the request, its cards being there.
async fn configure(
    handle: &Handle,
    drivers: Option<&Drivers>,
    request: &NetworkRequest,
) -> Result<(), NetworkError> {
    let links: Vec<LinkMessage> = cards::links(handle).await?;
    let mut indexes = HashMap::new();
    for interface in &request.interfaces {
        let index = cards::index_of(&links, interface)?;
        bring_up(handle, drivers, index, interface).await?;
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
        routes::add_route(handle, find(&route.interface)?, route).await?;
    }
    for neighbour in &request.neighbours {
        routes::add_neighbour(handle, find(&neighbour.interface)?, neighbour).await?;
    }
    Ok(())
}

async fn bring_up(
    handle: &Handle,
    drivers: Option<&Drivers>,
    index: u32,
    interface: &Interface,
) -> Result<(), NetworkError> {
    let name = &interface.name;
    let change = LinkUnspec::new_with_index(index)
        .name(name)
        .address(hardware_address(&interface.mac)?)
        .mtu(interface.mtu);
    let change = handle.link().set(change.build()).execute();
    change.await.map_err(kernel(&format!("set up {name}")))?;
    // The host has the link-local address, too, and says which: this kernel makes none up.
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mode = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
    let mode = LinkUnspec::new_with_index(index).append_extra_attribute(mode);
    if let Err(error) = handle.link().set(mode.build()).execute().await {
        log::warn!("keep {name} from making up an address: {error}");
    }
    // It has its name now, and is to have its queues before the first frame.
    if let Some(drivers) = drivers {
        drivers.widen(interface);
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

fn kernel(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.to_owned();
    |source| NetworkError::Kernel { what, source }
}
