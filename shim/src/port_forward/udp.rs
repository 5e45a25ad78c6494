//! Datagrams.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_protocol::datagram;
use futures::{SinkExt, StreamExt};
use log::{debug, warn};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::bytes::Bytes;

use super::Guest;
use super::rule::Rule;

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
            warn!(
                "more than {MAX_CLIENTS} clients of {}: one is dropped",
                rule.host
            );
            continue;
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let _ = queue.try_send(payload);
        table.insert(client, queue);
        let (socket, guest, clients) = (Arc::clone(&socket), guest.clone(), Arc::clone(&clients));
        tasks.spawn(async move {
            if let Err(reason) = forward(&socket, client, datagrams, &guest, rule).await {
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
    guest: &Guest,
    rule: Rule,
) -> Result<(), String> {
    let mut container = datagram::framed(guest.connect(rule).await?);
    loop {
        tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(payload) => container.send(payload).await.map_err(|e| e.to_string())?,
                None => return Ok(()),
            },
            answer = container.next() => match answer {
                // The client may be gone, or its network: its matter, as with any datagram.
                Some(Ok(payload)) => drop(socket.send_to(&payload, client).await),
                Some(Err(e)) => return Err(e.to_string()),
                None => return Ok(()),
            },
            () = tokio::time::sleep(IDLE) => return Ok(()),
        }
    }
}
