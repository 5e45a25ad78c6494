//! The network of a container as its engine made it, shown to the guest.
//!
//! ```text
//!  engine's bridge ── veth ══ eth0 ◀─ tc redirect, both ways ─▶ hull0 (tap) ══ virtio-net ── eth0
//!                             └─────── the container's namespace ───────┘      └── guest ──┘
//! ```
//! A network is a namespace of the host and its counterpart in the guest. Containers of one machine may
//! share one, or have their own; the cards are for all of them.
//!
//! CNI and dockerd make a container's interfaces when its task exists and before it is started, in
//! the namespace of the task's pid. So the machine boots with cards that have no cable; Start looks
//! at the namespace, plugs a tap into a card for each interface it finds, and has the agent give
//! the card that interface's name, addresses, routes and neighbours. From then on the kernel tells
//! when something has changed there (`follow`), and it looks again. With the last container that is in
//! the network all of it is undone.
//!
//! For a container with the host's own network the interface is pasta's (`host`).
//!
//! Ports that Swarm publishes are rules of the namespace, which a tap passes by: they are done beside it
//! (`ingress`). dockerd's resolver, which is in the namespace for networks that users have defined, is asked for
//! the guest (`resolver`).

mod actions;
mod cables;
mod follow;
pub mod host;
mod ingress;
mod inspect;
mod namespace;
mod redirect;
mod resolver;
mod tap;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::{self as agent, AgentClient};
use log::{debug, warn};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use vmm_control::{MAX_PAIRS, MacAddress, Nic, RateLimit};

use crate::error::{TaskError, chain};
use crate::ports::Ports;
use crate::vmm_process::Control;
use cables::Cable;

/// What has the host's kernel move a card's frames.
pub const VHOST_NET: &str = "/dev/vhost-net";

/// What their names begin with.
const TAP: &str = "hull";

/// Cards of every machine: how many interfaces its containers can have together.
pub const CARDS: usize = 4;

/// The card that has several pairs of queues, if any has: the first that is taken.
const WIDE: usize = 0;

/// Number of the first network: the one that the agent is in.
const MACHINES: u32 = 0;

/// How long the agent may take to configure its cards.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to give cards back.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Why the guest has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace.
    #[error("enter the network namespace {}", path.display())]
    Namespace {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A way to ask the kernel.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel's account of interfaces, addresses and routes, or a change of it.
    #[error("{what}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: rtnetlink::Error,
    },
    /// A tap.
    #[error("make a tap for {interface}")]
    Tap {
        /// The interface that it is for.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The namespace's sockets.
    #[error("find the resolver in the container's network namespace")]
    Sockets(#[source] io::Error),
    /// The guest does not ask.
    #[error("the guest's agent did not connect to ask for names")]
    Names(#[source] io::Error),
    /// More interfaces than cards.
    #[error(
        "{0} would be one interface more than the {CARDS} that a virtual machine's containers have together"
    )]
    NoCard(String),
}

/// The network cards of a machine, which its containers' networks have between them.
#[derive(Clone)]
pub struct Cards {
    control: Control,
    agent: AgentClient,
    ports: Arc<Ports>,
    /// Pairs of queues of [`WIDE`].
    pairs: u8,
    /// Which of them some network has; held for one look-up or change.
    taken: Arc<StdMutex<[bool; CARDS]>>,
    /// Number of the next network: the agent's name of it.
    next: Arc<AtomicU32>,
}

/// A network namespace of the host, whose interfaces become those of a namespace in the guest.
/// Clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    cards: Cards,
    number: u32,
    /// Open, so that it can be tidied up when the process in it is gone.
    namespace: File,
    /// It stands for the host's own. Taps that are none of ours are interfaces then: pasta's is one.
    is_hosts: AtomicBool,
    /// What it has of the cards. One looks at the namespace at a time.
    plugged: Mutex<Plugged>,
    follower: StdMutex<Follower>,
}

/// Who looks at a network's namespace again at each change.
#[derive(Default)]
enum Follower {
    /// Nobody yet: the network was not connected.
    #[default]
    Nobody,
    /// A task, until it is aborted.
    Task(AbortHandle),
    /// Nobody any more: the network is disconnected for good.
    Over,
}

impl Follower {
    fn abort(&self) {
        if let Self::Task(task) = self {
            task.abort();
        }
    }
}

/// What a network has of the cards by now.
#[derive(Debug, Default)]
struct Plugged {
    /// Its cards, each with what leads to it; nothing does if its interface has gone, until the
    /// agent has heard of that.
    cards: BTreeMap<usize, Option<Cable>>,
    /// What the agent was told last.
    told: agent::NetworkRequest,
    /// Whether the guest may ask the engine's resolver.
    names: bool,
}

impl Cards {
    /// The cards of the machine of this VMM and agent, made by [`cards`] with so many `pairs`.
    #[must_use]
    pub fn new(control: Control, agent: AgentClient, ports: Arc<Ports>, pairs: u8) -> Self {
        Self {
            control,
            agent,
            ports,
            pairs,
            taken: Arc::default(),
            next: Arc::default(),
        }
    }

    /// The network that process `pid` is in.
    ///
    /// # Errors
    /// When its namespace cannot be opened.
    pub fn network_of(&self, pid: u32) -> Result<Network, NetworkError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let namespace =
            File::open(&path).map_err(|source| NetworkError::Namespace { path, source })?;
        Ok(Network(Arc::new(Inner {
            cards: self.clone(),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            namespace,
            is_hosts: AtomicBool::new(false),
            plugged: Mutex::default(),
            follower: StdMutex::default(),
        })))
    }

    /// How many pairs of queues a card has.
    fn pairs(&self, card: usize) -> u8 {
        pairs_of(card, self.pairs)
    }

    /// Takes a card that no network has.
    fn take(&self) -> Option<usize> {
        let mut taken = self.taken();
        let card = taken.iter().position(|taken| !taken)?;
        taken[card] = true;
        Some(card)
    }

    fn give_back(&self, card: usize) {
        self.taken()[card] = false;
    }

    fn taken(&self) -> MutexGuard<'_, [bool; CARDS]> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Network {
    /// The network namespace.
    #[must_use]
    pub fn namespace(&self) -> &File {
        &self.0.namespace
    }

    /// The agent's name of it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Whether it is the one that the machine itself is in.
    #[must_use]
    pub fn is_machines(&self) -> bool {
        self.0.number == MACHINES
    }

    /// Makes cards the interfaces that are in the namespace by now, in the guest's namespace that
    /// container `id` is in, and follows what becomes of those. Again is no error.
    ///
    /// # Errors
    /// When there are more interfaces than cards, or kernel, VMM or agent refuse.
    pub async fn connect(&self, id: &str) -> Result<(), TaskError> {
        let namespace = self.namespace();
        // The host's own interfaces are never taken from it.
        if namespace::is_own(namespace).map_err(|e| TaskError::failed(&e))? {
            return Ok(());
        }
        // Subscribed before the first look: no change is missed.
        let changes = follow::Changes::of(namespace).map_err(|e| TaskError::failed(&e))?;
        self.refresh(id).await?;
        let (network, id) = (self.clone(), id.to_owned());
        let mut follower = self.follower();
        // Not if the container has ended meanwhile.
        if !matches!(*follower, Follower::Over) {
            let task = tokio::spawn(async move { network.follow(changes, &id).await });
            let earlier = std::mem::replace(&mut *follower, Follower::Task(task.abort_handle()));
            earlier.abort();
        }
        Ok(())
    }

    /// Looks again at each change.
    async fn follow(&self, mut changes: follow::Changes, id: &str) {
        while changes.next().await.is_some() {
            if let Err(e) = self.refresh(id).await {
                warn!("follow the network: {e}");
            }
        }
    }

    /// Makes the cards what the namespace has now.
    async fn refresh(&self, id: &str) -> Result<(), TaskError> {
        let mut plugged = self.0.plugged.lock().await;
        if matches!(*self.follower(), Follower::Over) {
            return Err(TaskError::Finished);
        }
        let cards = &self.0.cards;
        let is_hosts = self.0.is_hosts.load(Ordering::Relaxed);
        let looked = cables::look(self.namespace(), is_hosts, cards, &mut plugged.cards).await;
        let found = looked.map_err(|e| TaskError::failed(&e))?;
        if found.configuration != plugged.told {
            let request = agent::NetworkRequest {
                network: self.0.number,
                container_id: id.to_owned(),
                hosts: is_hosts,
                ..found.configuration.clone()
            };
            let context = ttrpc::context::with_duration(CONFIGURE_PATIENCE);
            cards.agent.configure(context, &request).await?;
            plugged.told = found.configuration;
        }
        // Not before the agent has it where it belongs: a container that has carried a card away, into a namespace of
        // its own, is not to find another's network at the end of it.
        for (&card, cable) in &mut plugged.cards {
            if let Some(cable) = cable {
                let sent = cable.plug(card, &cards.control);
                sent.map_err(|e| TaskError::failed(&e))?;
            }
        }
        plugged.cards.retain(|&card, cable| {
            if cable.is_none() {
                cards.give_back(card);
            }
            cable.is_some()
        });
        // Engines make it before the interface that it answers for, of which the agent is told first.
        let is_known = plugged.told != agent::NetworkRequest::default();
        let is_there = || resolver::is_in(self.namespace()).map_err(|e| TaskError::failed(&e));
        if is_known && !plugged.names && is_there()? {
            self.take_questions().await?;
            plugged.names = true;
        }
        found.failed.map_or(Ok(()), |e| Err(TaskError::failed(&e)))
    }

    /// Has the agent ask the engine's resolver what containers ask it.
    async fn take_questions(&self) -> Result<(), TaskError> {
        let cards = &self.0.cards;
        let expected = cards.ports.expect();
        let request = agent::ResolveRequest {
            host_port: expected.port,
            network: self.0.number,
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(CONFIGURE_PATIENCE);
        cards.agent.resolve(context, &request).await?;
        let connected = expected.connected_within(CONFIGURE_PATIENCE).await;
        let connection = connected.map_err(|e| TaskError::failed(&NetworkError::Names(e)))?;
        resolver::serve(self.namespace(), connection).map_err(|e| TaskError::failed(&e))
    }

    /// Gives the interfaces back to the namespace, which may outlive the machine, and the cards to the
    /// machine, which may outlive the network.
    pub async fn disconnect(&self) {
        let follower = std::mem::replace(&mut *self.follower(), Follower::Over);
        follower.abort();
        let plugged = std::mem::take(&mut *self.0.plugged.lock().await);
        if !matches!(follower, Follower::Task(_)) && plugged.cards.is_empty() {
            return;
        }
        let cards = &self.0.cards;
        let number = agent::NetworkId {
            network: self.0.number,
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(DISCONNECT_PATIENCE);
        if let Err(e) = cards.agent.disconnect(context, &number).await {
            // As a rule because the machine is gone.
            debug!("take back network cards: {}", TaskError::from(e));
        }
        match namespace::netlink(self.namespace()) {
            Ok(handle) => {
                for cable in plugged.cards.values().flatten() {
                    // It may be gone: engines take the interface away when the task is over.
                    redirect::end(&handle, cable.interface).await;
                    cables::remove_tap(&handle, cable).await;
                }
            }
            Err(e) => warn!("give back network interfaces: {}", chain(&e)),
        }
        plugged
            .cards
            .into_keys()
            .for_each(|card| cards.give_back(card));
    }

    fn stand_for_host(&self) {
        self.0.is_hosts.store(true, Ordering::Relaxed);
    }

    fn follower(&self) -> MutexGuard<'_, Follower> {
        let locked = self.0.follower.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pairs of queues of a machine's first card: one for each processor, and no more than hull-vmm has for
/// a card. vhost-net's cards have one.
#[must_use]
pub fn pairs(vcpus: u8, vhost_net: bool) -> u8 {
    if vhost_net {
        1
    } else {
        vcpus.clamp(1, MAX_PAIRS)
    }
}

/// Most containers have one interface, which is the first card. Each queue of the others would cost every
/// start as much.
fn pairs_of(card: usize, pairs: u8) -> u8 {
    if card == WIDE { pairs } else { 1 }
}

/// The cards that a machine boots with, of which the first has several `pairs` of queues, if any has. Those
/// that there is a descriptor of [`VHOST_NET`] for have their frames moved by the host's kernel.
pub fn cards<F>(pairs: u8, vhost: Vec<F>) -> Vec<Nic<F>> {
    let mut vhost = vhost.into_iter();
    (0..CARDS)
        .map(|number| Nic {
            pairs: pairs_of(number, pairs),
            taps: Vec::new(),
            vhost: vhost.next(),
            mac: card(number),
            mtu: None,
            receive_limit: RateLimit::default(),
            transmit_limit: RateLimit::default(),
        })
        .collect()
}

/// Hardware address of a card until it gets that of the interface it stands for: locally
/// administered, and known to this machine alone.
fn card(number: usize) -> MacAddress {
    let number = u8::try_from(number).expect("a machine has few cards");
    MacAddress([0x02, b'h', b'u', b'l', b'l', number])
}
