//! Port forwards for hosts without a network engine: ports of the host that lead to ports of the
//! container (the annotation `io.hull.port-forward`, see [`rule`]).
//!
//! ```text
//! client ──TCP──▶ shim ──vsock──▶ agent ──TCP──▶ 127.0.0.1 or ::1 in the container
//! client ──UDP──▶ shim ──vsock──▶ agent ──UDP──▶     one connection for each client's address
//! ```
//! The shim binds at Create, so that a port in use is an error there, and accepts from when the
//! container exists. Each connection is asked for by itself: a service that is restarted is found
//! again, and one that is not there costs its client a reset.

pub mod follow;
pub mod rule;
mod tcp;
#[cfg(test)]
mod tests;
mod throttle;
mod udp;

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{self as agent, AgentClient};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::task::JoinSet;

use crate::error::{TaskError, chain};
use crate::ports::Ports;
use rule::{Protocol, Rule};

/// How long the agent may take to reach the container's port.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing is told again of what a client may cause as often as it likes.
const TOLD_PAUSE: Duration = Duration::from_secs(60);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why a port is not forwarded.
#[derive(Debug, thiserror::Error)]
#[error("forward {protocol} port {host}; is the port in use, or forwarded by another container?")]
pub struct ForwardError {
    host: SocketAddr,
    protocol: Protocol,
    #[source]
    source: io::Error,
}

/// Ports that are bound and not served yet.
#[derive(Debug, Default)]
pub struct Bound {
    sockets: Vec<(Rule, Socket)>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Ports that are served until this is dropped, and with it all that came in by them.
#[derive(Debug, Default)]
pub struct Forwards {
    _tasks: JoinSet<()>,
}

/// Whose ports they are.
#[derive(Clone)]
enum Whose {
    /// Those of this container.
    Container(String),
    /// Those of the network of this number.
    Network(u32),
}

/// The way into the guest.
#[derive(Clone)]
struct Guest {
    whose: Whose,
    agent: AgentClient,
    ports: Arc<Ports>,
}

impl Bound {
    /// Binds every rule's port.
    ///
    /// # Errors
    /// The first that cannot be bound; none is then.
    pub fn bind(rules: &[Rule]) -> Result<Self, ForwardError> {
        let bound = rules.iter().map(|rule| {
            let socket = bind(rule).map_err(|source| ForwardError {
                host: rule.host,
                protocol: rule.protocol,
                source,
            })?;
            Ok((*rule, socket))
        });
        Ok(Self {
            sockets: bound.collect::<Result<_, _>>()?,
        })
    }

    /// Starts to serve them, for container `id`.
    #[must_use]
    pub fn serve(self, id: &str, agent: &AgentClient, ports: &Arc<Ports>) -> Forwards {
        let mut tasks = JoinSet::new();
        for (rule, socket) in self.sockets {
            let guest = Guest {
                whose: Whose::Container(id.to_owned()),
                agent: agent.clone(),
                ports: Arc::clone(ports),
            };
            socket.serve(&mut tasks, guest, rule);
        }
        Forwards { _tasks: tasks }
    }
}

impl Socket {
    fn serve(self, tasks: &mut JoinSet<()>, guest: Guest, rule: Rule) {
        match self {
            Self::Tcp(listener) => tasks.spawn(tcp::serve(listener, guest, rule)),
            Self::Udp(socket) => tasks.spawn(udp::serve(socket, guest, rule)),
        };
    }
}

impl Guest {
    /// A connection to a port of the container's.
    async fn connect(&self, rule: Rule) -> Result<UnixStream, String> {
        let expected = self.ports.expect();
        let (container_id, network) = match &self.whose {
            Whose::Container(id) => (id.clone(), 0),
            Whose::Network(number) => (String::new(), *number),
        };
        let request = agent::ForwardRequest {
            protocol: match rule.protocol {
                Protocol::Tcp => agent::Protocol::TCP,
                Protocol::Udp => agent::Protocol::UDP,
            }
            .into(),
            port: rule.container_port.into(),
            host_port: expected.port,
            container_id,
            network,
            address: rule
                .container_address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(CONNECT_PATIENCE);
        let asked = self.agent.forward(context, &request).await;
        asked.map_err(|e| TaskError::from(e).to_string())?;
        // An agent that says that it comes, and does not, keeps no client for ever.
        let connected = expected.connected_within(CONNECT_PATIENCE).await;
        connected.map_err(|e| chain(&e))
    }
}

/// A socket for `rule`. The unspecified IPv6 address is bound for both families, or for IPv4 alone
/// where the host has no IPv6.
fn bind(rule: &Rule) -> io::Result<Socket> {
    match bind_to(rule.host, rule.protocol) {
        Err(e)
            if rule.host.ip().is_unspecified()
                && matches!(
                    rustix::io::Errno::from_io_error(&e),
                    Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
                ) =>
        {
            bind_to(SocketAddr::from(([0; 4], rule.host.port())), rule.protocol)
        }
        bound => bound,
    }
}

fn bind_to(host: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    let family = match host {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if host.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !host.ip().is_unspecified())?;
    }
    match protocol {
        Protocol::Tcp => {
            // A port of connections that have ended a moment ago can be taken.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &host)?;
            rustix::net::listen(&socket, BACKLOG)?;
            let listener = TcpListener::from_std(StdTcpListener::from(socket))?;
            Ok(Socket::Tcp(listener))
        }
        Protocol::Udp => {
            rustix::net::bind(&socket, &host)?;
            Ok(Socket::Udp(UdpSocket::from_std(StdUdpSocket::from(
                socket,
            ))?))
        }
    }
}
