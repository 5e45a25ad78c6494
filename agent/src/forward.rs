//! Port forwards: what a client of the host's sends, to a port of the container's and back.
//!
//! A socket is made in the container's network namespace and used from here. The service is
//! connected to before the host is told, so that nobody's connection is taken for nothing.
//!
//! Threat: the service, which is a container's. It may stop reading, stop writing or never end; a
//! forward costs one task and two buffers until the host hangs up.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_protocol::datagram::{self, Bytes};
use futures::{SinkExt, StreamExt};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_vsock::VsockStream;

use crate::host::Host;
use crate::network::Namespace;

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// One connection.
    Tcp,
    /// The datagrams of one client.
    Udp,
}

/// Why there is no forward.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nobody listens.
    #[error("connect to port {port} of the container")]
    Service {
        /// The port.
        port: u16,
        /// What the kernel said of 127.0.0.1, or else of ::1.
        source: io::Error,
    },
    /// The shim does not wait there.
    #[error("connect to port {port} of the host")]
    Host {
        /// The vsock port.
        port: u32,
        /// The cause.
        source: io::Error,
    },
}

/// Connects both ends and moves data between them from then on.
///
/// # Errors
/// Both of `ForwardError`.
pub async fn forward(
    host: Host,
    network: &Namespace,
    protocol: Protocol,
    (address, port): (Option<IpAddr>, u16),
    host_port: u32,
) -> Result<(), ForwardError> {
    let no_service = |source| ForwardError::Service { port, source };
    let dial = async || {
        let connected = host.connect(host_port).await;
        connected.map_err(|source| ForwardError::Host {
            port: host_port,
            source,
        })
    };
    match protocol {
        Protocol::Tcp => {
            let service = tcp(network, address, port).await.map_err(no_service)?;
            tokio::spawn(connection(service, dial().await?));
        }
        Protocol::Udp => {
            let service = udp(network, address, port).await.map_err(no_service)?;
            tokio::spawn(datagrams(service, dial().await?));
        }
    }
    Ok(())
}

/// Where a service may listen, in the order of trying.
fn loopbacks(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ]
}

async fn connection(mut service: TcpStream, mut host: VsockStream) {
    let _ = service.set_nodelay(true);
    // An error ends both directions, and the host sees the connection end.
    if let Err(error) = copy_bidirectional(&mut service, &mut host).await {
        log::debug!("a forwarded connection broke: {error}");
        let _ = service.set_zero_linger();
    }
}

/// A connection to the service, at the address or on 127.0.0.1 or else on ::1.
async fn tcp(network: &Namespace, address: Option<IpAddr>, port: u16) -> io::Result<TcpStream> {
    if let Some(address) = address {
        let make = match address {
            IpAddr::V4(_) => TcpSocket::new_v4,
            IpAddr::V6(_) => TcpSocket::new_v6,
        };
        let peer = SocketAddr::new(address, port);
        return network.inside(make)?.connect(peer).await;
    }
    let [v4, v6] = loopbacks(port);
    match network.inside(TcpSocket::new_v4)?.connect(v4).await {
        Ok(service) => Ok(service),
        Err(_) => network.inside(TcpSocket::new_v6)?.connect(v6).await,
    }
}

/// A socket whose peer is the service. A datagram socket connects to anything, so whether 127.0.0.1
/// or ::1 is right shows in the kernel's tables.
async fn udp(network: &Namespace, address: Option<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    let [v4, v6] = loopbacks(port);
    // The table is that of the thread which opens it.
    let listening = |table: &str| {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        listens(&table.unwrap_or_default(), port)
    };
    let (socket, peer) = network.inside(|| {
        let (local, peer) = if let Some(address) = address {
            (SocketAddr::new(address, 0), SocketAddr::new(address, port))
        } else if !listening("udp") && listening("udp6") {
            (SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), v6)
        } else {
            (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), v4)
        };
        let socket = std::net::UdpSocket::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok((UdpSocket::from_std(socket)?, peer))
    })?;
    socket.connect(peer).await?;
    Ok(socket)
}

/// Whether a socket of this table (proc(5), /proc/net/udp) has the local port.
fn listens(table: &str, port: u16) -> bool {
    let local = |line: &str| {
        let (_, hex) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(hex, 16).ok()
    };
    table.lines().skip(1).any(|line| local(line) == Some(port))
}

async fn datagrams(service: UdpSocket, host: VsockStream) {
    let (mut to_host, mut from_host) = datagram::framed(host).split();
    // Each direction by itself: one that is full does not keep the other from being emptied.
    let questions = async {
        while let Some(Ok(payload)) = from_host.next().await {
            // Refused means that nobody listens yet: datagrams get lost.
            drop(service.send(&payload).await);
        }
    };
    let answers = async {
        let mut buffer = vec![0; datagram::MAX];
        loop {
            // An error here is the echo of a datagram that was refused.
            if let Ok(length) = service.recv(&mut buffer).await
                && let payload = Bytes::copy_from_slice(&buffer[..length])
                && to_host.send(payload).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = questions => {}
        () = answers => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_port_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             52: 00000000:0035 00000000:0000 07 00000000:00000000\n\
             nonsense\n";

        assert!(listens(table, 53));
        assert!(!listens(table, 54));
    }
}
