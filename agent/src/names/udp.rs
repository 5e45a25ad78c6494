//! Questions that come as datagrams.

use std::net::SocketAddr;
use std::sync::Arc;

use agent_protocol::question::{Bytes, MAX_MESSAGE, Transport};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::questions::Questions;

/// Questions under way; more are dropped, as by a full socket, and asked again by who waits.
const MAX_QUESTIONS: usize = 256;

pub(super) async fn serve(socket: UdpSocket, questions: Questions) {
    let socket = Arc::new(socket);
    let free = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        // An error is the echo of an answer to who is gone; the next datagram is another matter.
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else {
            continue;
        };
        let message = Bytes::copy_from_slice(&buffer[..length]);
        let (socket, questions) = (Arc::clone(&socket), questions.clone());
        tokio::spawn(answer(socket, asker, questions, message, place));
    }
}

async fn answer(
    socket: Arc<UdpSocket>,
    asker: SocketAddr,
    questions: Questions,
    message: Bytes,
    _place: OwnedSemaphorePermit,
) {
    if let Some(answer) = questions.ask(Transport::Datagram, message).await {
        let _ = socket.send_to(&answer, asker).await;
    }
}
