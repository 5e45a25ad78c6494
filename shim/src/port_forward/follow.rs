//! Forwards that follow the container's sockets: for a container with the host's own network, what waits for
//! clients in the guest waits at the same address and port of the host.
//!
//! A port that is in use on the host is tried again every second; the container, whose own bind has
//! succeeded, is not told. Addresses that the host does not have are never taken.
//!
//! Threat: the guest may name any port. It gets [`MAX_LISTENING`] at most, none that is somebody's, and
//! privileged ones only where a container's specification lets it bind such.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use agent_protocol::{self as agent, AgentClient, MAX_LISTENING};
use log::{debug, warn};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::rule::{Protocol, Rule};
use super::throttle::Throttle;
use super::{Forwards, Guest, Whose, bind};
use crate::error::{TaskError, chain};
use crate::ports::Ports;

/// How long the agent may take to say that nothing has changed, and some.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long nothing is asked after that has failed, and a port that could not be had is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// The least time between two questions: a guest that makes up changes costs no more.
const SHORTEST: Duration = Duration::from_millis(100);

/// Where, and of what.
type Socket = (SocketAddr, Protocol);

/// What has become of a socket of the container's.
enum Followed {
    /// It is the host's, too.
    Served { _tasks: JoinSet<()> },
    /// It cannot be, for now.
    Refused,
}

/// Follows the sockets of a network, none of them at a port below `lowest`, until what is returned is
/// dropped.
#[must_use]
pub fn follow(
    network: u32,
    lowest: &Arc<AtomicU16>,
    agent: &AgentClient,
    ports: &Arc<Ports>,
) -> Forwards {
    let guest = Guest {
        whose: Whose::Network(network),
        agent: agent.clone(),
        ports: Arc::clone(ports),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(run(guest, network, Arc::clone(lowest)));
    Forwards { _tasks: tasks }
}

async fn run(guest: Guest, network: u32, lowest: Arc<AtomicU16>) {
    let mut known = Vec::new();
    let mut sockets = Sockets::default();
    loop {
        let lowest = lowest.load(Ordering::Relaxed);
        let request = agent::ListeningRequest {
            network,
            known: known.clone(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(PATIENCE);
        let mut asked = pin!(guest.agent.listening(context, &request));
        let answer = loop {
            tokio::select! {
                answer = &mut asked => break answer,
                () = sleep(PAUSE), if sockets.any_refused() => {
                    sockets.keep_up(&guest, &wanted(&known), lowest);
                }
            }
        };
        match answer {
            Ok(answer) => {
                known = answer.sockets;
                known.truncate(MAX_LISTENING);
                sockets.keep_up(&guest, &wanted(&known), lowest);
                sleep(SHORTEST).await;
            }
            // The machine ends.
            Err(e) => {
                debug!("follow the sockets of the guest: {}", TaskError::from(e));
                sleep(PAUSE).await;
            }
        }
    }
}

/// The sockets of the guest, and what has become of them.
struct Sockets {
    followed: HashMap<Socket, Followed>,
    /// Of what is told of refusals, of which a guest may cause as many as it likes.
    told: Throttle,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            followed: HashMap::new(),
            told: Throttle::new(PAUSE),
        }
    }
}

impl Sockets {
    fn any_refused(&self) -> bool {
        let refused = |now: &Followed| matches!(now, Followed::Refused);
        self.followed.values().any(refused)
    }

    /// Ends what is no more, begins what is new, and tries again what could not be begun.
    fn keep_up(&mut self, guest: &Guest, wanted: &[Socket], lowest: u16) {
        let may_be = |socket: &Socket| wanted.contains(socket) && socket.0.port() >= lowest;
        self.followed.retain(|socket, _| may_be(socket));
        for &(host, protocol) in wanted {
            let before = self.followed.get(&(host, protocol));
            if matches!(before, Some(Followed::Served { .. })) {
                continue;
            }
            let is_new = before.is_none();
            let rule = Rule {
                host,
                container_address: Some(host.ip())
                    .filter(|ip| !ip.is_unspecified() && !ip.is_loopback()),
                container_port: host.port(),
                protocol,
            };
            let bound = if host.port() < lowest {
                Err(io::ErrorKind::PermissionDenied.into())
            } else {
                bind(&rule)
            };
            let now = match bound {
                Ok(socket) => {
                    let mut tasks = JoinSet::new();
                    socket.serve(&mut tasks, guest.clone(), rule);
                    Followed::Served { _tasks: tasks }
                }
                Err(e) => {
                    if is_new {
                        self.tell(&rule, &e);
                    }
                    Followed::Refused
                }
            };
            self.followed.insert((host, protocol), now);
        }
    }

    fn tell(&mut self, refused: &Rule, why: &io::Error) {
        if !self.told.passes() {
            return;
        }
        warn!(
            "{} port {}, at which a container with the host's network listens, is not its on the host: {}",
            refused.protocol,
            refused.host,
            chain(why)
        );
    }
}

/// What the host is to listen at. The guest may say anything.
fn wanted(told: &[agent::ListeningSocket]) -> Vec<Socket> {
    let sockets = told.iter().take(MAX_LISTENING).filter_map(|socket| {
        let protocol = match socket.protocol.enum_value().ok()? {
            agent::Protocol::TCP => Protocol::Tcp,
            agent::Protocol::UDP => Protocol::Udp,
        };
        let port = u16::try_from(socket.port).ok().filter(|&port| port != 0)?;
        let ip: IpAddr = socket.address.parse().ok()?;
        // Nobody is reached there by a relay, and anybody may have it: it is no address of the host's.
        let is_anybodys = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        (!is_anybodys).then_some((SocketAddr::new(ip, port), protocol))
    });
    let sockets: Vec<_> = sockets.collect();
    // On the host the unspecified address of IPv6 is IPv4's, too.
    let covered = |&(address, protocol): &Socket| {
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && sockets.contains(&(all, protocol))
    };
    let wanted = sockets.iter().filter(|socket| !covered(socket));
    wanted.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str, port: u32) -> agent::ListeningSocket {
        agent::ListeningSocket {
            address: address.to_owned(),
            port,
            ..Default::default()
        }
    }

    fn tcp(address: &str) -> Socket {
        (address.parse().unwrap(), Protocol::Tcp)
    }

    #[test]
    fn the_host_listens_where_the_container_does() {
        let sockets = [
            told("0.0.0.0", 80),
            told("::", 80),
            told("0.0.0.0", 81),
            told("127.0.0.1", 82),
        ];
        let expected = ["[::]:80", "0.0.0.0:81", "127.0.0.1:82"].map(tcp);
        assert_eq!(wanted(&sockets), expected);
    }

    #[test]
    fn what_a_hostile_guest_says_is_cut() {
        let odd = [told("nowhere", 80), told("::", 0), told("::", 65536)];
        assert_eq!(wanted(&odd), []);
        let anybodys = ["224.0.0.251", "255.255.255.255", "ff02::fb"].map(|ip| told(ip, 5353));
        assert_eq!(wanted(&anybodys), []);
        let many: Vec<_> = (1..60000).map(|port| told("::", port)).collect();
        assert_eq!(wanted(&many).len(), MAX_LISTENING);
    }
}
