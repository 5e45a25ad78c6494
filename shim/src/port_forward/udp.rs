//! Datagrams.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::datagram;
use futures::{SinkExt, StreamExt};
use log::{debug, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::bytes::Bytes;

use super::rule::Rule;
use super::throttle::Throttle;
use super::{Guest, TOLD_PAUSE};

/// Clients at a time; datagrams of more are dropped.
const MAX_CLIENTS: usize = 256;

/// A client that has neither sent nor received for that long is forgotten (as conntrack does with
/// a stream of datagrams).
const IDLE: Duration = Duration::from_secs(120);

/// Datagrams of a client that may wait; more are dropped, as a full socket does.
const QUEUE: usize = 64;

type Clients = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Bytes>>>>;

pub(super) async fn serve(socket: UdpSocket, guest: Guest, rule: Rule) {
    let socket = Arc::new(socket);
    let clients = Clients::default();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; datagram::MAX];
    let mut told = Throttle::new(TOLD_PAUSE);
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(e) => {
                // An ICMP error for an earlier answer; the next datagram is another matter.
                debug!("receive on {}: {e}", rule.host);
                continue;
            }
        };
        let payload = Bytes::copy_from_slice(&buffer[..length]);
        let mut table = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = table.get(&client) {
            let _ = queue.try_send(payload);
            continue;
        }
        if table.len() == MAX_CLIENTS {
            if told.passes() {
                let host = rule.host;
                warn!("more than {MAX_CLIENTS} clients of {host}: others are dropped");
            }
            continue;
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let _ = queue.try_send(payload);
        table.insert(client, queue);
        let (socket, guest, clients) = (Arc::clone(&socket), guest.clone(), Arc::clone(&clients));
        tasks.spawn(async move {
            let forwarded = match guest.connect(rule).await {
                Ok(container) => forward(&socket, client, datagrams, container).await,
                Err(reason) => Err(reason),
            };
            if let Err(reason) = forwarded {
                debug!("forward datagrams to {}: {reason}", rule.host);
            }
            let mut table = clients.lock().unwrap_or_else(PoisonError::into_inner);
            table.remove(&client);
        });
    }
}

/// Serves one client until both sides have been silent.
async fn forward(
    socket: &UdpSocket,
    client: SocketAddr,
    mut datagrams: mpsc::Receiver<Bytes>,
    container: impl AsyncRead + AsyncWrite,
) -> Result<(), String> {
    let container = pin!(container);
    let (mut to_container, mut from_container) = datagram::framed(container).split();
    let seen = Notify::new();
    // Each direction by itself: one that is full does not keep the other from being emptied.
    let questions = async {
        while let Some(payload) = datagrams.recv().await {
            to_container.send(payload).await?;
            seen.notify_one();
        }
        io::Result::Ok(())
    };
    let answers = async {
        while let Some(payload) = from_container.next().await {
            // The client may be gone, or its network: its matter, as with any datagram.
            drop(socket.send_to(&payload?, client).await);
            seen.notify_one();
        }
        Ok(())
    };
    let silence = async { while timeout(IDLE, seen.notified()).await.is_ok() {} };
    let over = tokio::select! {
        over = questions => over,
        over = answers => over,
        () = silence => Ok(()),
    };
    over.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 100;

    #[tokio::test]
    async fn a_container_that_does_not_read_is_heard() {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let host = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = tokio::io::duplex(64);
        let (queue, datagrams) = mpsc::channel(QUEUE);
        // More than fits on the way.
        for _ in 0..QUEUE {
            queue.try_send(Bytes::from(vec![7; 1000])).unwrap();
        }
        let to = client.local_addr().unwrap();
        let forwarded = tokio::spawn(async move { forward(&host, to, datagrams, ours).await });

        let mut container = datagram::framed(theirs);
        let mut buffer = [0; 16];
        for number in 0..COUNT {
            let answer = Bytes::from(number.to_string());
            let sent = timeout(Duration::from_secs(10), container.send(answer)).await;
            sent.expect("the host takes it").unwrap();
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], number.to_string().as_bytes());
        }
        drop(container);
        // Whichever direction finds out first says whether that was an error.
        let ended = timeout(Duration::from_secs(10), forwarded).await;
        let _ = ended.expect("nobody is there any more").unwrap();
    }
}
