//! Questions that come over connections, each behind its length (RFC 1035 §4.2.2): framed as datagrams
//! of a forward are.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::datagram;
use agent_protocol::question::Transport;
use futures::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::questions::Questions;

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may stay without a question, or an answer untaken (RFC 7766 §6.2.3: a few
/// seconds).
const IDLE: Duration = Duration::from_secs(10);

/// How long nothing is accepted after that has failed, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, questions: Questions) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&free).acquire_owned().await else {
            return; // Never: the semaphore is not closed.
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    answer(connection, &questions).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("accept a question for a name: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one question after the other. A question without an answer ends the connection.
async fn answer(connection: TcpStream, questions: &Questions) {
    let mut connection = datagram::framed(connection);
    while let Ok(Some(Ok(message))) = timeout(IDLE, connection.next()).await {
        let answer = questions.ask(Transport::Connection, message.freeze());
        let Some(answer) = answer.await else {
            return;
        };
        if !matches!(timeout(IDLE, connection.send(answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}
