//! The network of a container as its engine made it, shown to the guest.
//!
//! ```text
//!  engine's bridge ── veth ══ eth0 ◀─ tc redirect, both ways ─▶ hull0 (tap) ══ virtio-net ── eth0
//!                             └──────── the sandbox's namespace ────────┘      └── guest ──┘
//! ```
//! CNI and dockerd make a container's interfaces when its task exists and before it is started, in
//! the namespace of the task's pid. So the machine boots with cards that have no cable; Start looks
//! at the namespace, plugs a tap into a card for each interface it finds, and has the agent give
//! the card that interface's name, addresses, routes and neighbours.

mod inspect;
mod namespace;
mod redirect;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::{self as agent, AgentClient};
use log::warn;
use vmm_control::{MacAddress, Nic, RateLimit};

use crate::error::{TaskError, chain};
use crate::vmm_process::Control;

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
    /// Interfaces that lead to a tap, by their numbers.
    redirected: Arc<Mutex<Vec<u32>>>,
}

/// Taps, each for the card of its place, and what the agent is to make of the cards.
#[derive(Debug, Default)]
struct Plugged {
    taps: Vec<OwnedFd>,
    configuration: agent::NetworkRequest,
}

impl Cards {
    /// The cards of the machine whose VMM is process `pid`.
    ///
    /// # Errors
    /// When its namespace cannot be opened.
    pub fn new(pid: u32, control: Control, agent: AgentClient) -> Result<Self, NetworkError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let namespace =
            File::open(&path).map_err(|source| NetworkError::Namespace { path, source })?;
        Ok(Self {
            namespace: namespace.into(),
            control,
            agent,
            redirected: Arc::default(),
        })
    }

    /// Makes them the interfaces that are in the namespace by now.
    ///
    /// # Errors
    /// When there are more interfaces than cards, or kernel, VMM or agent refuse.
    pub async fn connect(&self) -> Result<(), TaskError> {
        let plugged = self.plug().await.map_err(|e| TaskError::failed(&e))?;
        if plugged.taps.is_empty() {
            return Ok(());
        }
        for (card, tap) in plugged.taps.iter().enumerate() {
            let sent = self.control.plug(card, tap);
            sent.map_err(|e| TaskError::failed(&e))?;
        }
        let context = ttrpc::context::with_duration(CONFIGURE_PATIENCE);
        self.agent
            .configure(context, &plugged.configuration)
            .await?;
        Ok(())
    }

    /// Gives the interfaces back to the namespace, which may outlive the machine.
    pub async fn disconnect(&self) {
        let redirected = std::mem::take(&mut *self.redirected());
        if redirected.is_empty() {
            return;
        }
        let given_back = namespace::within(&self.namespace, || async move {
            let handle = namespace::netlink()?;
            for index in redirected {
                // It may be gone: engines take the interface away when the task is over.
                redirect::end(&handle, index).await;
            }
            Ok(())
        });
        if let Err(e) = given_back.await {
            warn!("give back network interfaces: {}", chain(&e));
        }
    }

    /// Looks at the namespace and connects each of its interfaces to a tap.
    async fn plug(&self) -> Result<Plugged, NetworkError> {
        // The host's own interfaces are never taken from it.
        if namespace::is_own(&self.namespace)? {
            return Ok(Plugged::default());
        }
        let cards = self.clone();
        namespace::within(&self.namespace, || async move {
            let handle = namespace::netlink()?;
            let network = inspect::inspect(&handle).await?;
            if network.interfaces.len() > CARDS {
                return Err(NetworkError::TooMany(network.interfaces.len()));
            }
            let mut taps = Vec::new();
            for (number, interface) in network.interfaces.iter().enumerate() {
                let name = format!("hull{number}");
                let tap = tap::create(&name).map_err(|source| NetworkError::Tap {
                    interface: interface.name.clone(),
                    source,
                })?;
                // Noted first: what is half made when it fails is given back, too.
                cards.redirected().push(interface.index);
                redirect::connect(&handle, interface, &name).await?;
                taps.push(tap);
            }
            Ok(Plugged {
                taps,
                configuration: network.configuration(),
            })
        })
        .await
    }

    fn redirected(&self) -> MutexGuard<'_, Vec<u32>> {
        self.redirected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
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
