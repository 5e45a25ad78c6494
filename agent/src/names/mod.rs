//! Names: what containers ask at 127.0.0.11:53 goes to the network engine's resolver, which listens
//! there on the host, in the namespace that their network stands for.
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

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::AbortHandle;

use self::questions::Questions;
use self::redirect::Ports;
use crate::host::Host;
use crate::network::Namespace;
use crate::socket_programs::SocketPrograms;
use crate::sys;

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

/// The networks in which containers can ask for names, by their numbers.
#[derive(Default)]
pub struct Names(Mutex<HashMap<u32, Served>>);

/// One of them, as long as this is there.
struct Served {
    _redirect: SocketPrograms,
    listening: [AbortHandle; 2],
}

/// Its sockets, and the number that the kernel knows the network by.
struct Sockets {
    cookie: u64,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Names {
    /// Takes what is asked in a network, that of `namespace`, to the host from now on, until either hangs
    /// up. Again begins anew.
    ///
    /// # Errors
    /// All of `NamesError`.
    pub async fn serve(
        &self,
        network: u32,
        namespace: &Namespace,
        host: Host,
        host_port: u32,
    ) -> Result<(), NamesError> {
        let Sockets { cookie, udp, tcp } =
            (namespace.inside(listen)).map_err(NamesError::Listen)?;
        let port =
            |address: io::Result<std::net::SocketAddr>| address.map(|address| address.port());
        let ports = Ports {
            udp: port(udp.local_addr()).map_err(NamesError::Listen)?,
            tcp: port(tcp.local_addr()).map_err(NamesError::Listen)?,
        };
        let connection = host.connect(host_port).await;
        let connection = connection.map_err(|source| NamesError::Host {
            port: host_port,
            source,
        })?;
        let redirect = redirect::install(cookie, ports).map_err(NamesError::Redirect)?;
        let questions = Questions::over(connection);
        let listening = [
            tokio::spawn(udp::serve(udp, questions.clone())).abort_handle(),
            tokio::spawn(tcp::serve(tcp, questions)).abort_handle(),
        ];
        let served = Served {
            _redirect: redirect,
            listening,
        };
        self.served().insert(network, served);
        Ok(())
    }

    /// Ends it for a network, in which nobody is any more. One that has no names needs no end.
    pub fn end(&self, network: u32) {
        self.served().remove(&network);
    }

    fn served(&self) -> MutexGuard<'_, HashMap<u32, Served>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.listening.iter().for_each(AbortHandle::abort);
    }
}

/// Listens in this thread's network namespace.
fn listen() -> io::Result<Sockets> {
    let at = (redirect::ADDRESS, 0);
    let (udp, tcp) = (StdUdpSocket::bind(at)?, StdTcpListener::bind(at)?);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok(Sockets {
        cookie: sys::network_namespace_cookie()?,
        udp: UdpSocket::from_std(udp)?,
        tcp: TcpListener::from_std(tcp)?,
    })
}
