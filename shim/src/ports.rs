//! The host's vsock ports: who waits for which connection of the guest's.
//!
//! A port that nobody waits for is closed, and each is good for one connection. Whoever connects first has
//! it, and in the guest that could be any process that may make vsock sockets, of any container: streams
//! have ports drawn at random of four thousand million, so that nobody guesses their way into one.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::FIRST_STREAM_PORT;
use log::debug;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The ports of one sandbox.
#[derive(Debug)]
pub struct Ports {
    /// Guards the table alone; held for one look-up.
    inner: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
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
            waiting: Some(HashMap::new()),
        };
        Self {
            inner: Mutex::new(table),
        }
    }
}

impl Ports {
    /// Waits for a connection to a port that nobody can know who is not told it.
    #[must_use]
    pub fn expect(&self) -> Expected {
        let mut table = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let port = table.unused_port();
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
    fn unused_port(&self) -> u32 {
        loop {
            let port = random();
            let is_waited_for = (self.waiting.as_ref()).is_some_and(|of| of.contains_key(&port));
            // The last is no port (`VMADDR_PORT_ANY`, vsock(7)).
            if (FIRST_STREAM_PORT..u32::MAX).contains(&port) && !is_waited_for {
                return port;
            }
        }
    }

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

fn random() -> u32 {
    let mut bytes = [0; 4];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    // getrandom(2): so few come whole, and there is no error once the host's pool is initialised,
    // before which it waits.
    filled.expect("the host's kernel has random numbers");
    u32::from_ne_bytes(bytes)
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

    /// The same, but for no longer than that.
    ///
    /// # Errors
    /// As [`Expected::connected`], and when the guest does not connect in time.
    pub async fn connected_within(self, patience: Duration) -> io::Result<UnixStream> {
        timeout(patience, self.connected()).await?
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
    async fn no_port_tells_of_another() {
        let ports = Ports::default();
        let expected: Vec<_> = (0..64).map(|_| ports.expect()).collect();
        let mut numbers: Vec<u32> = expected.iter().map(|expected| expected.port).collect();
        assert!(numbers.iter().all(|&port| port >= FIRST_STREAM_PORT));
        numbers.sort_unstable();
        // By chance two of 64 are neighbours once in a million runs.
        let closest = numbers.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(closest > Some(1), "{numbers:?}");
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
    async fn who_does_not_come_is_not_waited_for() {
        let ports = Ports::default();
        let waited = ports
            .expect()
            .connected_within(Duration::from_millis(10))
            .await;
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::TimedOut);
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
