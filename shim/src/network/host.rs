//! The host's own network, for containers that ask for it (`docker run --network host`).
//!
//! ```text
//! host's sockets ◀─ pasta ── tap eth0 ◀─ tc redirect ─▶ hull0 (tap) ══ virtio-net ── eth0
//!                            └─ the machine's namespace ─┘      └── guest ──┘
//! ```
//! pasta(1) gives a namespace the host's addresses and routes, and makes what is sent there sockets of
//! the host: no route, bridge or rule of the host's is touched, and servers see the host's address. Here
//! that namespace is the machine's. What comes to the host for the container is no matter of pasta's:
//! `port_forward::follow`.
//!
//! pasta has the machine's user, and of root's rights those to enter the namespace and to make its
//! tap there; it gives up what it does not need itself, enters namespaces of its own with an empty root, and has a
//! system-call filter.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agent_protocol::host_addresses::{
    LOOPBACK, LOOPBACK_V6, PREFIX, PREFIX_V6, RESOLVER, RESOLVER_THERE, SHARED, SHARED_V6,
};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::process::Command;
use tokio::time::timeout;

use super::inspect::Interface;
use super::{Network, NetworkError, follow, inspect, namespace};
use crate::spawn::Account;
use crate::supervise::Supervised;

/// Sets user and rights of a program (util-linux).
const SETPRIV: &str = "setpriv";

/// What it takes to enter a namespace and to make a tap there.
const RIGHTS: &str = "-all,+sys_admin,+net_admin";

/// The gateway of IPv6 where the host has none, the one that pasta takes where there is no IPv6 at all.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Ethernet's, which a tap of the machine takes.
const MTU: u32 = 1500;

/// How long pasta may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the container does not have the host's network.
#[derive(Debug, thiserror::Error)]
pub enum HostNetworkError {
    /// There is no such program.
    #[error(
        "the host's network needs pasta, and {} is not there; install the package passt, or set \"pasta\" in {}",
        path.display(),
        crate::config::PATH
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be started.
    #[error("start {SETPRIV} and pasta for the host's network")]
    Start(#[source] io::Error),
    /// It has ended.
    #[error("connect the virtual machine to the host's network: {0}")]
    Ended(String),
    /// It is not ready.
    #[error("pasta has made no interface after {PATIENCE:?}")]
    Late,
    /// The namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl Network {
    /// Connects the namespace to the host's network, for `user`, as long as the process lives.
    ///
    /// # Errors
    /// When pasta is not there, or does not make an interface.
    pub async fn join_host(
        &self,
        pasta: &Path,
        user: u32,
        account: &Account,
    ) -> Result<Supervised, HostNetworkError> {
        if !pasta.is_file() {
            let path = pasta.to_owned();
            return Err(HostNetworkError::Missing { path });
        }
        self.stand_for_host();
        let mut changes = follow::Changes::of(self.namespace())?;
        let started = start(pasta, user, self.namespace(), account);
        let started = started.map_err(HostNetworkError::Start)?;
        let handle = namespace::netlink(self.namespace())?;
        let ready = async {
            loop {
                let network = inspect::inspect(&handle, true).await?;
                if let Some(interface) = network.interfaces.first() {
                    return add_routes(&handle, interface).await;
                }
                tokio::select! {
                    _ = changes.next() => {}
                    ended = started.ended() => return Err(HostNetworkError::Ended(format!(
                        "{ended}; {}", started.last_line.get()
                    ))),
                }
            }
        };
        let ready = timeout(PATIENCE, ready).await;
        if let Err(error) = ready.unwrap_or(Err(HostNetworkError::Late)) {
            started.end(Duration::ZERO).await;
            return Err(error);
        }
        Ok(started)
    }
}

/// To the addresses that stand for the host's: there may be no default route that leads there.
async fn add_routes(handle: &Handle, interface: &Interface) -> Result<(), HostNetworkError> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(PREFIX.0, PREFIX.1)
        .output_interface(interface.index)
        .scope(RouteScope::Link)
        .build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(PREFIX_V6.0, PREFIX_V6.1)
        .output_interface(interface.index)
        .build();
    let routes = [Some(v4), interface.has_v6().then_some(v6)];
    for route in routes.into_iter().flatten() {
        let added = handle.route().add(route).execute().await;
        added.map_err(|source| {
            let what = "add a route to the addresses that stand for the host's".to_owned();
            HostNetworkError::Network(NetworkError::Netlink { what, source })
        })?;
    }
    Ok(())
}

fn start(pasta: &Path, user: u32, namespace: &File, account: &Account) -> io::Result<Supervised> {
    let mut command = Command::new(SETPRIV);
    command
        .args(["--no-new-privs", "--clear-groups"])
        .args(["--reuid", "--regid"].map(|option| format!("{option}={user}")))
        .args(
            ["--inh-caps", "--ambient-caps", "--bounding-set"].map(|set| format!("{set}={RIGHTS}")),
        )
        .arg(pasta)
        .args(["--foreground", "--quiet", "--config-net"])
        // The namespace is its input: no path leads there for its user.
        .args(["--netns=/proc/self/fd/0", "--no-netns-quit"])
        .args([
            format!("--mtu={MTU}"),
            format!("--map-host-loopback={LOOPBACK}"),
            format!("--map-host-loopback={LOOPBACK_V6}"),
            format!("--map-guest-addr={SHARED}"),
            format!("--map-guest-addr={SHARED_V6}"),
            format!("--dns-forward={RESOLVER}"),
            format!("--dns-host={RESOLVER_THERE}"),
        ])
        // Addresses are set and not asked for; what comes in is the shim's.
        .args(["--no-dhcp", "--no-dhcpv6", "--no-ra"])
        .args(
            ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"]
                .map(|ports| format!("{ports}=none")),
        )
        .args(routes(&Tables::read()))
        .current_dir("/")
        .stdin(Stdio::from(namespace.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    account.open(&mut command)?;
    Ok(Supervised::new("pasta", command.spawn()?))
}

/// The host's routing tables (proc(5)).
struct Tables {
    /// `/proc/net/route`.
    v4: String,
    /// `/proc/net/ipv6_route`.
    v6: String,
}

impl Tables {
    fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            v4: read("/proc/net/route"),
            v6: read("/proc/net/ipv6_route"),
        }
    }

    fn has_default_v4(&self) -> bool {
        let mut lines = self.v4.lines().skip(1);
        lines.any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Destination and mask.
            let is_none = |place: usize| fields.get(place) == Some(&"00000000");
            is_none(1) && is_none(7)
        })
    }

    fn has_default_v6(&self) -> bool {
        self.v6.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [destination, prefix, .., interface] = fields[..] else {
                return false;
            };
            // The loopback interface has one that refuses.
            destination.bytes().all(|digit| digit == b'0') && prefix == "00" && interface != "lo"
        })
    }
}

/// What pasta is to do about routes. Without a default route it takes the interface that has any, a bridge
/// without ports at worst, whose routes the kernel does not take from it. Told not to copy them, it makes
/// a default route, by which everything that the host reaches is reached; for IPv6 it then has to be told
/// of a gateway, which answers for no address but its own.
fn routes(host: &Tables) -> Vec<String> {
    let mut options = Vec::new();
    if !host.has_default_v4() {
        options.push("--no-copy-routes".to_owned());
        if !host.has_default_v6() {
            options.push(format!("--gateway={GATEWAY_V6}"));
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_copied_from_a_host_that_has_a_default_route() {
        const HEAD: &str =
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        const BRIDGE: &str = "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        const DEFAULT: &str = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        let line_v6 = |destination: &str, prefix, gateway: &str, interface| {
            let none = "0".repeat(32);
            format!(
                "{destination} {prefix} {none} 00 {gateway} 00000400 00000001 00000000 00000003 {interface}\n"
            )
        };
        let (any, link) = ("0".repeat(32), format!("fe80{}", "0".repeat(28)));
        let refused = line_v6(&any, "00", &any, "      lo");
        let local = line_v6(&link, "40", &any, "    eth0");
        let router = line_v6(&any, "00", &link, "    eth0");
        for (v4, v6, options) in [
            (vec![HEAD, BRIDGE, DEFAULT], vec![&local, &refused], vec![]),
            (
                vec![],
                vec![],
                vec!["--no-copy-routes", "--gateway=fe80::1"],
            ),
            (
                vec![HEAD, BRIDGE],
                vec![&local, &refused],
                vec!["--no-copy-routes", "--gateway=fe80::1"],
            ),
            (vec![HEAD], vec![&local, &router], vec!["--no-copy-routes"]),
        ] {
            let tables = Tables {
                v4: v4.concat(),
                v6: v6.into_iter().map(String::as_str).collect(),
            };
            assert_eq!(routes(&tables), options, "{}{}", tables.v4, tables.v6);
        }
    }
}
