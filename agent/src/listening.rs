//! Which sockets of a network namespace wait for clients (proc(5), `/proc/net/tcp` and its like).
//!
//! The kernel tells nobody when a socket begins to listen, so the tables are looked at, as long as the host
//! asks: it does for containers that have its own network. Those of TCP begin with the sockets
//! that listen, so a namespace with many connections costs no more.
//!
//! Threat: a container that listens everywhere. What is read and told is bounded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use agent_protocol::MAX_LISTENING;
use tokio::time::{Instant, sleep};

use crate::forward::Protocol;
use crate::network::Namespace;

/// How long a change may go unseen.
const INTERVAL: Duration = Duration::from_millis(200);

/// After this the caller is told that nothing has changed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines of a table that are read.
const MAX_LINES: usize = 4096;

/// Ports that the kernel chooses (ip-sysctl.rst, `ip_local_port_range`): a UDP socket with one of them is a client's.
const CHOSEN: std::ops::RangeInclusive<u16> = 32768..=60999;

/// A socket that waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// Of connections or datagrams.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
}

/// Waits until the namespace's sockets are others than `known`, or some seconds; tells them.
///
/// # Errors
/// When the namespace cannot be entered, or has no tables.
pub async fn changed(network: &Namespace, known: &[Socket]) -> io::Result<Vec<Socket>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sockets = network.inside(sockets)?;
        if sockets != known || Instant::now() >= deadline {
            return Ok(sockets);
        }
        sleep(INTERVAL).await;
    }
}

/// Those of this thread's namespace.
fn sockets() -> io::Result<Vec<Socket>> {
    let mut found = BTreeSet::new();
    for (table, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        let table = match File::open(format!("/proc/thread-self/net/{table}")) {
            Ok(table) => table,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found.extend(listed(BufReader::new(table), protocol));
    }
    Ok(found.into_iter().take(MAX_LISTENING).collect())
}

/// The sockets of a table that wait for clients.
fn listed(table: impl BufRead, protocol: Protocol) -> Vec<Socket> {
    let lines = table.lines().skip(1).take(MAX_LINES).map_while(Result::ok);
    let sockets = lines.map_while(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = address(fields.next()?)?;
        let state = fields.nth(1)?;
        match protocol {
            // Behind them are those that are connected.
            Protocol::Tcp => (state == "0A").then_some(Some(local)),
            Protocol::Udp => {
                let serves = state == "07" && !CHOSEN.contains(&local.port());
                Some(serves.then_some(local))
            }
        }
    });
    let sockets = sockets.flatten().filter(|address| address.port() != 0);
    sockets
        .map(|address| Socket { protocol, address })
        .collect()
}

/// An address and a port as the tables have them: words of the processor's, in hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |digits: &str| Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(ip)?),
        32 => {
            let mut octets = [0; 16];
            for (place, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&word(ip.get(8 * place..8 * place + 8)?)?);
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    // A socket of IPv6 that speaks IPv4 alone.
    let ip = match ip {
        IpAddr::V6(v6) if v6 != Ipv6Addr::UNSPECIFIED => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        _ => ip,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").ok();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // A port that the kernel would not choose.
        let udp = (1024..32768).find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok());
        let udp = udp.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();

        let found = sockets().unwrap();

        let has = |protocol, address| found.contains(&Socket { protocol, address });
        assert!(has(Protocol::Tcp, listener.local_addr().unwrap()));
        assert!(six.is_none_or(|six| has(Protocol::Tcp, six.local_addr().unwrap())));
        assert!(!has(Protocol::Tcp, connected.local_addr().unwrap()));
        assert!(has(Protocol::Udp, udp.local_addr().unwrap()));
        assert!(!has(Protocol::Udp, client.local_addr().unwrap()));
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in ["", "0100007F", "0100007:50", "0100007F:", "zz00007F:0050"] {
            assert_eq!(address(text), None, "{text}");
        }
        let any = address("00000000000000000000000000000000:0050").unwrap();
        assert_eq!(any, "[::]:80".parse().unwrap());
    }

    #[test]
    fn a_table_without_end_is_read_no_further_than_it_has_to_be() {
        let line = b"1: 00000000:0050 00000000:0000 0A rest\n".repeat(2 * MAX_LINES);
        assert!(listed(&line[..], Protocol::Tcp).len() <= MAX_LINES);
    }
}
