//! The host's vsock ports: who waits for which connection of the guest's.
//!
//! A port that nobody waits for is closed, and each is good for one connection: a guest can neither
//! guess its way into a stream nor take one twice.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Mutex, PoisonError};

use agent_protocol::FIRST_STREAM_PORT;
use log::debug;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// The ports of one sandbox.
#[derive(Debug)]
pub struct Ports {
    /// Guards the table alone; held for one look-up.
    inner: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    next: u32,
    /// `None` once the guest is gone: no connection will come.
    waiting: Option<HashMap<u32, oneshot::Sender<OwnedFd>>>,
}

/// A connection that will come.
#[derive(Debug)]
pub struct Expected {
    /// The port to tell the guest.
    pub port: u32,
    connection: oneshot::Receiver<OwnedFd>,
}

impl Default for Ports {
    /// No port is waited for.
    fn default() -> Self {
        let table = Table {
            next: FIRST_STREAM_PORT,
            waiting: Some(HashMap::new()),
        };
        Self {
            inner: Mutex::new(table),
        }
    }
}

impl Ports {
    /// Waits for a connection to a port that nobody has used.
    #[must_use]
    pub fn expect(&self) -> Expected {
        let mut table = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let port = table.next;
        table.next = table.next.wrapping_add(1).max(FIRST_STREAM_PORT);
        table.wait_for(port)
    }

    /// Waits for a connection to one of the protocol's fixed ports.
    #[must_use]
    pub fn expect_at(&self, port: u32) -> Expected {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait_for(port)
    }

    /// The guest connected.
    pub fn deliver(&self, port: u32, socket: OwnedFd) {
        let waiting = {
            let mut table = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            table
                .waiting
                .as_mut()
                .and_then(|waiting| waiting.remove(&port))
        };
        match waiting {
            // Nobody waits any more: the socket is closed.
            Some(waiting) => drop(waiting.send(socket)),
            // No warning: a guest could fill the host's log with it.
            None => debug!("the guest connected to port {port}, which nobody expects"),
        }
    }

    /// The guest is gone: whoever waits, now or later, is told.
    pub fn close(&self) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting = None;
    }
}

impl Table {
    fn wait_for(&mut self, port: u32) -> Expected {
        let (sender, connection) = oneshot::channel();
        if let Some(waiting) = &mut self.waiting {
            // Whoever has given up leaves no trace.
            waiting.retain(|_, waiting| !waiting.is_closed());
            waiting.insert(port, sender);
        }
        Expected { port, connection }
    }
}

impl Expected {
    /// Waits until the guest connects.
    ///
    /// # Errors
    /// When the sandbox ends first, or the socket cannot be used.
    pub async fn connected(self) -> io::Result<UnixStream> {
        let socket = self
            .connection
            .await
            .map_err(|_| io::ErrorKind::ConnectionAborted)?;
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_reaches_who_expects_it_and_no_one_else() {
        let ports = Ports::default();
        let (first, second) = (ports.expect(), ports.expect());
        assert_ne!(first.port, second.port);

        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ports.deliver(second.port, theirs.into_std().unwrap().into());
        let mut connected = second.connected().await.unwrap();
        connected.write_all(b"tide").await.unwrap();
        drop(connected);
        let mut text = String::new();
        ours.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "tide");
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_guest_is_gone() {
        let ports = Ports::default();
        let before = ports.expect();
        ports.close();
        for expected in [before, ports.expect()] {
            let error = expected.connected().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        }
    }

    #[tokio::test]
    async fn an_unexpected_or_second_connection_is_closed() {
        let ports = Ports::default();
        let expected = ports.expect();
        let port = expected.port;
        let (_ours, theirs) = UnixStream::pair().unwrap();
        ports.deliver(port, theirs.into_std().unwrap().into());
        for port in [port, 7] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ports.deliver(port, theirs.into_std().unwrap().into());
            assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        }
    }
}
