//! Names: what containers ask at 127.0.0.11:53 goes to the network engine's resolver, which listens
//! there on the host, in the namespace that this machine stands for.
//!
//! ```text
//! container ─▶ 127.0.0.11:53 ─redirect─▶ udp, tcp ─▶ questions ──vsock──▶ shim ─▶ 127.0.0.11:53
//! ```
//! Here nothing is known of DNS but that a message over TCP has its length before it.
//!
//! Threat: containers ask as often and as much as they like, and do not listen. Questions under way and
//! connections are counted; beyond that datagrams are dropped, as by a full socket, and connections
//! wait. The host answers each question, with nothing if it has no answer, so none stays for ever.

mod questions;
mod redirect;
mod tcp;
mod udp;

use std::io;

use tokio::net::{TcpListener, UdpSocket};

use self::questions::Questions;
use self::redirect::Ports;
use crate::host::Host;

/// Why containers cannot ask for names.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// No socket.
    #[error("listen at {}", redirect::ADDRESS)]
    Listen(#[source] io::Error),
    /// The shim does not wait there.
    #[error("connect to port {port} of the host")]
    Host {
        /// The vsock port.
        port: u32,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refuses the programs.
    #[error("redirect {}:53", redirect::ADDRESS)]
    Redirect(#[source] io::Error),
}

/// Takes questions to the host from now on, until it hangs up. Must be called when this is the
/// containers' network namespace.
///
/// # Errors
/// All of `NamesError`.
pub async fn serve(host: Host, host_port: u32) -> Result<(), NamesError> {
    let at = (redirect::ADDRESS, 0);
    let udp = UdpSocket::bind(at).await.map_err(NamesError::Listen)?;
    let tcp = TcpListener::bind(at).await.map_err(NamesError::Listen)?;
    let port = |address: io::Result<std::net::SocketAddr>| address.map(|address| address.port());
    let ports = Ports {
        udp: port(udp.local_addr()).map_err(NamesError::Listen)?,
        tcp: port(tcp.local_addr()).map_err(NamesError::Listen)?,
    };
    let connection = host.connect(host_port).await;
    let connection = connection.map_err(|source| NamesError::Host {
        port: host_port,
        source,
    })?;
    redirect::install(ports).map_err(NamesError::Redirect)?;
    let questions = Questions::over(connection);
    tokio::spawn(udp::serve(udp, questions.clone()));
    tokio::spawn(tcp::serve(tcp, questions));
    Ok(())
}
