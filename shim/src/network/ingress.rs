//! Ports that Swarm publishes through its ingress network.
//!
//! A request to the published port of any node comes to a task at that same port, at the task's address in
//! the ingress network; rules in the task's network namespace bring it to the port that the
//! service has, and keep everything else away from that address (libnetwork, `addRedirectRules`). What
//! goes to a tap passes by those rules, so they are read, and done by traffic control.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use log::warn;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::TcAction;

use super::NetworkError;
use super::actions;
use super::inspect::Interface;
use super::namespace;
use super::redirect::{IPV4, Match, NO_OPTIONS, add};

/// Of the filters here: after those of the engine's answers, before the redirection itself.
const PORTS: u16 = 10;
const OTHERS: u16 = 11;

/// A published port of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    address: Ipv4Addr,
    protocol: Protocol,
    published: u16,
    target: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    fn named(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// In an IP header (IANA, "Protocol Numbers").
    fn number(self) -> u32 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// `TCA_CSUM_UPDATE_FLAG_…` of `linux/tc_act/tc_csum.h`.
    fn checksum(self) -> u32 {
        match self {
            Self::Tcp => 8,
            Self::Udp => 16,
            Self::Sctp => 64,
        }
    }
}

/// The ports that rules of the namespace publish; none if there is nobody to ask for rules.
pub(super) fn ports(namespace: &File) -> Result<Vec<Port>, NetworkError> {
    let list = || {
        let mut list = Command::new("iptables-save");
        match list.args(["-t", "nat"]).output() {
            Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            // What made no rules has no need of it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => {
                warn!("run iptables-save to find ports that Swarm publishes: {e}");
                Ok(String::new())
            }
        }
    };
    let rules = namespace::inside(namespace, list)?;
    Ok(rules.lines().filter_map(port).collect())
}

/// Reads `-A PREROUTING -d ADDRESS/32 -p tcp -m tcp --dport PORT -j REDIRECT --to-ports PORT`.
fn port(rule: &str) -> Option<Port> {
    let mut words = rule.split_whitespace();
    if (words.next()?, words.next()?) != ("-A", "PREROUTING") {
        return None;
    }
    let words: Vec<&str> = words.collect();
    let after = |option: &str| {
        let at = words.iter().position(|&word| word == option)?;
        words.get(at + 1).copied()
    };
    if after("-j")? != "REDIRECT" {
        return None;
    }
    Some(Port {
        address: after("-d")?.strip_suffix("/32")?.parse().ok()?,
        protocol: Protocol::named(after("-p")?)?,
        published: after("--dport")?.parse().ok()?,
        target: after("--to-ports")?.parse().ok()?,
    })
}

/// Has the ports of that interface published, and nothing else at its address reached.
pub(super) async fn publish(
    handle: &Handle,
    interface: &Interface,
    tap: u32,
    ports: &[Port],
) -> Result<(), NetworkError> {
    let is_here = |port: &&Port| interface.has(IpAddr::V4(port.address));
    let ports: Vec<&Port> = ports.iter().filter(is_here).collect();
    let published = async {
        let (inside, outside) = (tap, interface.index);
        for port in &ports {
            let Port {
                published, target, ..
            } = **port;
            let to = [End::Destination(published), End::Destination(target)];
            translate(handle, (outside, inside), port, to).await?;
            let from = [End::Source(target), End::Source(published)];
            translate(handle, (inside, outside), port, from).await?;
        }
        let Some(port) = ports.first() else {
            return Ok(());
        };
        for protocol in Protocol::ALL {
            let rest = Port { protocol, ..**port };
            let gone = || vec![actions::drop()];
            let to = End::Destination(0).of(&rest);
            filter(handle, outside, OTHERS, &to, gone()).await?;
            let from = End::Source(0).of(&rest);
            filter(handle, inside, OTHERS, &from, gone()).await?;
        }
        Ok(())
    };
    published.await.map_err(|source| NetworkError::Netlink {
        what: format!("publish Swarm's ports at {}", interface.name),
        source,
    })
}

/// Changes one port of a packet on its way from one interface to another.
async fn translate(
    handle: &Handle,
    (from, to): (u32, u32),
    port: &Port,
    [before, after]: [End; 2],
) -> Result<(), rtnetlink::Error> {
    let mut matches = before.of(port);
    let (old, new) = (before.port(), after.port());
    matches.push(old);
    let actions = actions::chain([
        actions::edit(new.offset.cast_unsigned(), !new.mask, new.value),
        actions::checksum(port.protocol.checksum()),
        actions::redirect(to),
    ]);
    filter(handle, from, PORTS, &matches, actions).await
}

async fn filter(
    handle: &Handle,
    interface: u32,
    priority: u16,
    matches: &[Match],
    actions: Vec<TcAction>,
) -> Result<(), rtnetlink::Error> {
    add(handle, interface, (priority, IPV4), matches, Some(actions)).await
}

/// One end of a packet's way, with its port.
#[derive(Debug, Clone, Copy)]
enum End {
    Source(u16),
    Destination(u16),
}

impl End {
    /// A packet of that protocol, from or to that address, that has a port in it: no later part
    /// of a larger one (RFC 791 §3.1).
    fn of(self, port: &Port) -> Vec<Match> {
        const FRAGMENT: Match = Match {
            offset: 4,
            mask: 0x0000_1fff,
            value: 0,
        };
        let protocol = Match {
            offset: 8,
            mask: 0x00ff_0000,
            value: port.protocol.number() << 16,
        };
        let address = Match {
            offset: match self {
                Self::Source(_) => 12,
                Self::Destination(_) => 16,
            },
            mask: u32::MAX,
            value: port.address.to_bits(),
        };
        vec![NO_OPTIONS, FRAGMENT, protocol, address]
    }

    /// Where the port stands in TCP, UDP and SCTP, behind an IP header without options.
    fn port(self) -> Match {
        let (mask, value) = match self {
            Self::Source(port) => (0xffff_0000, u32::from(port) << 16),
            Self::Destination(port) => (0x0000_ffff, u32::from(port)),
        };
        Match {
            offset: 20,
            mask,
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_redirects_is_a_port_and_no_other_is() {
        let rules = "\
# Generated by iptables-save v1.8.11 (nf_tables)
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER_OUTPUT - [0:0]
-A PREROUTING -d 10.0.0.5/32 -p tcp -m tcp --dport 8086 -j REDIRECT --to-ports 80
-A PREROUTING -d 10.0.0.5/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353
-A PREROUTING -d 10.0.0.0/24 -p tcp -m tcp --dport 1 -j REDIRECT --to-ports 2
-A PREROUTING -d 10.0.0.5/32 -p tcp -m tcp --dport 1 -j DNAT --to-destination 10.0.0.6:2
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A PREROUTING -d 10.0.0.5/32 -p tcp -m tcp --dport 99999 -j REDIRECT --to-ports
COMMIT";
        let address = Ipv4Addr::new(10, 0, 0, 5);
        let port = |protocol, published, target| Port {
            address,
            protocol,
            published,
            target,
        };
        assert_eq!(
            rules.lines().filter_map(super::port).collect::<Vec<_>>(),
            [port(Protocol::Tcp, 8086, 80), port(Protocol::Udp, 53, 5353)]
        );
    }

    #[test]
    fn a_port_stands_where_its_end_has_it() {
        let (from, to) = (End::Source(0x1234).port(), End::Destination(0x1234).port());
        assert_eq!((from.mask, from.value), (0xffff_0000, 0x1234_0000));
        assert_eq!((to.mask, to.value), (0x0000_ffff, 0x0000_1234));
        assert_eq!(from.offset, to.offset);
    }
}
