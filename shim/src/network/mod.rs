//! The network of a container as its engine made it, shown to the guest.
//!
//! ```text
//!  engine's bridge ── veth ══ eth0 ◀─ tc redirect, both ways ─▶ hull0 (tap) ══ virtio-net ── eth0
//!                             └──────── the sandbox's namespace ────────┘      └── guest ──┘
//! ```
//! CNI and dockerd make a container's interfaces when its task exists and before it is started, in
//! the namespace of the task's pid. So the machine boots with cards that have no cable; Start looks
//! at the namespace, plugs a tap into a card for each interface it finds, and has the agent give
//! the card that interface's name, addresses, routes and neighbours. From then on the kernel tells
//! when something has changed there (`follow`), and it looks again.
//!
//! dockerd's resolver, which is in the namespace for networks that users have defined, is asked for
//! the guest (`resolver`).

mod follow;
mod inspect;
mod namespace;
mod redirect;
mod resolver;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::{self as agent, AgentClient};
use log::warn;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use vmm_control::{MacAddress, Nic, RateLimit};

use crate::error::{TaskError, chain};
use crate::ports::Ports;
use crate::vmm_process::Control;

/// What the taps are called; the kernel counts.
const TAPS: &str = "hull%d";

/// Cards of every machine: how many interfaces a container can have.
pub const CARDS: usize = 4;

/// How long the agent may take to configure its cards.
const CONFIGURE_PATIENCE: Duration = Duration::from_secs(30);

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
    #[error("the container has {0} network interfaces, a virtual machine at most {CARDS}")]
    TooMany(usize),
}

/// The network cards of a machine, and the namespace whose interfaces they become.
#[derive(Clone)]
pub struct Cards {
    /// Open, so that it can be tidied up when the VMM is gone.
    namespace: Arc<File>,
    control: Control,
    agent: AgentClient,
    ports: Arc<Ports>,
    /// What the cards are. One looks at the namespace at a time.
    plugged: Arc<Mutex<Plugged>>,
    /// Looks again at each change, until it is aborted.
    follower: Arc<StdMutex<Option<AbortHandle>>>,
}

/// What the cards are by now.
#[derive(Debug, Default)]
struct Plugged {
    /// For each card the interface that leads to its tap, by its number.
    interfaces: [Option<u32>; CARDS],
    /// What the agent was told last.
    told: agent::NetworkRequest,
    /// Whether the guest may ask the engine's resolver.
    names: bool,
}

/// What a look at the namespace has found to be done.
#[derive(Debug, Default)]
struct Change {
    /// Taps, each with its card.
    taps: Vec<(usize, OwnedFd)>,
    /// What the agent is to make of the cards.
    configuration: agent::NetworkRequest,
}

impl Cards {
    /// The cards of the machine whose VMM is process `pid`.
    ///
    /// # Errors
    /// When its namespace cannot be opened.
    pub fn new(
        pid: u32,
        control: Control,
        agent: AgentClient,
        ports: Arc<Ports>,
    ) -> Result<Self, NetworkError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let namespace =
            File::open(&path).map_err(|source| NetworkError::Namespace { path, source })?;
        Ok(Self {
            namespace: namespace.into(),
            control,
            agent,
            ports,
            plugged: Arc::default(),
            follower: Arc::default(),
        })
    }

    /// The network namespace.
    #[must_use]
    pub fn namespace(&self) -> &File {
        &self.namespace
    }

    /// Makes them the interfaces that are in the namespace by now, and follows what becomes of those.
    ///
    /// # Errors
    /// When there are more interfaces than cards, or kernel, VMM or agent refuse.
    pub async fn connect(&self) -> Result<(), TaskError> {
        // The host's own interfaces are never taken from it.
        if namespace::is_own(&self.namespace).map_err(|e| TaskError::failed(&e))? {
            return Ok(());
        }
        // Subscribed before the first look: no change is missed.
        let changes = follow::Changes::of(&self.namespace).map_err(|e| TaskError::failed(&e))?;
        self.refresh().await?;
        let cards = self.clone();
        let follower = tokio::spawn(async move { cards.follow(changes).await });
        *self.follower() = Some(follower.abort_handle());
        Ok(())
    }

    /// Looks again at each change.
    async fn follow(&self, mut changes: follow::Changes) {
        while changes.next().await.is_some() {
            if let Err(e) = self.refresh().await {
                warn!("follow the network: {e}");
            }
        }
    }

    /// Makes the cards what the namespace has now.
    async fn refresh(&self) -> Result<(), TaskError> {
        let mut plugged = self.plugged.lock().await;
        let looked = look(&self.namespace, &mut plugged.interfaces).await;
        let change = looked.map_err(|e| TaskError::failed(&e))?;
        for (card, tap) in &change.taps {
            let sent = self.control.plug(*card, tap);
            sent.map_err(|e| TaskError::failed(&e))?;
        }
        if change.configuration != plugged.told {
            let context = ttrpc::context::with_duration(CONFIGURE_PATIENCE);
            self.agent.configure(context, &change.configuration).await?;
            plugged.told = change.configuration;
        }
        // Engines make it before the interface that it answers for.
        let there = resolver::is_in(&self.namespace).map_err(|e| TaskError::failed(&e))?;
        if there && !plugged.names {
            self.take_questions().await?;
            plugged.names = true;
        }
        Ok(())
    }

    /// Has the agent ask the engine's resolver what containers ask it.
    async fn take_questions(&self) -> Result<(), TaskError> {
        let expected = self.ports.expect();
        let request = agent::ResolveRequest {
            host_port: expected.port,
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(CONFIGURE_PATIENCE);
        self.agent.resolve(context, &request).await?;
        let connected = timeout(CONFIGURE_PATIENCE, expected.connected()).await;
        let connection = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| TaskError::failed(&NetworkError::Names(e)))?;
        resolver::serve(&self.namespace, connection).map_err(|e| TaskError::failed(&e))
    }

    /// Gives the interfaces back to the namespace, which may outlive the machine.
    pub async fn disconnect(&self) {
        if let Some(follower) = self.follower().take() {
            follower.abort();
        }
        let interfaces = std::mem::take(&mut self.plugged.lock().await.interfaces);
        let interfaces: Vec<u32> = interfaces.into_iter().flatten().collect();
        if interfaces.is_empty() {
            return;
        }
        match namespace::netlink(&self.namespace) {
            Ok(handle) => {
                for index in interfaces {
                    // It may be gone: engines take the interface away when the task is over.
                    redirect::end(&handle, index).await;
                }
            }
            Err(e) => warn!("give back network interfaces: {}", chain(&e)),
        }
    }

    fn follower(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        let locked = self.follower.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the namespace, and connects each interface that is new to a tap. `cards` is what each
/// card is then, whether all went well or not: what is half made has to be given back, too.
async fn look(namespace: &File, cards: &mut [Option<u32>; CARDS]) -> Result<Change, NetworkError> {
    let handle = namespace::netlink(namespace)?;
    let network = inspect::inspect(&handle).await?;
    let is_there = |index: u32| network.interfaces.iter().any(|it| it.index == index);
    for card in cards.iter_mut() {
        // Its tap is replaced when the card is used again.
        *card = card.filter(|&index| is_there(index));
    }
    let mut taps = Vec::new();
    for interface in &network.interfaces {
        if cards.contains(&Some(interface.index)) {
            continue;
        }
        let Some(card) = cards.iter().position(Option::is_none) else {
            return Err(NetworkError::TooMany(network.interfaces.len()));
        };
        cards[card] = Some(interface.index);
        taps.push((card, plug(namespace, &handle, interface).await?));
    }
    let configuration = network.configuration(cards);
    Ok(Change {
        taps,
        configuration,
    })
}

/// A tap to which all leads that arrives at the interface.
async fn plug(
    namespace: &File,
    handle: &rtnetlink::Handle,
    interface: &inspect::Interface,
) -> Result<OwnedFd, NetworkError> {
    let create = || {
        tap::create(TAPS).map_err(|source| NetworkError::Tap {
            interface: interface.name.clone(),
            source,
        })
    };
    let (tap, name) = namespace::inside(namespace, create)?;
    redirect::connect(handle, interface, &name).await?;
    Ok(tap)
}

/// The cards that a machine boots with.
pub fn cards<F>() -> Vec<Nic<F>> {
    (0..CARDS)
        .map(|number| Nic {
            tap: None,
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
