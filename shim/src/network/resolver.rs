//! The engine's resolver, asked for the guest.
//!
//! dockerd answers for user-defined networks at 127.0.0.11:53, inside the container's network namespace:
//! sockets of its own there, to which the namespace's firewall redirects that port. The guest has
//! another loopback. So the agent takes what containers ask there (`agent_protocol::question`), and it
//! is asked again here, from inside the namespace.
//!
//! Threat: the guest asks what it likes, as a container does with runc; who answers is the engine.
//! Questions under way are counted, and the connection is not read beyond that; each is over after
//! [`PATIENCE`]. It all happens on a thread of its own, in the namespace, so the shim's other work
//! does not wait for it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use agent_protocol::datagram;
use agent_protocol::question::{self, MAX_MESSAGE, Question, Transport};
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};
use log::{debug, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;
use tokio_util::bytes::Bytes;

use super::{NetworkError, namespace};

/// Where the resolver is.
const RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(ADDRESS), 53);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Questions under way; more wait in the guest.
const MAX_QUESTIONS: usize = 128;

/// How long an answer may take. dockerd gives the servers that it asks itself four seconds each.
const PATIENCE: Duration = Duration::from_secs(12);

/// Ports for dockerd's own sockets in the namespace, see [`super::redirect`].
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Whether the engine's resolver is in the namespace: it has a UDP socket on its address.
pub(super) fn is_in(namespace: &File) -> Result<bool, NetworkError> {
    namespace::inside(namespace, || {
        let table = std::fs::read_to_string("/proc/thread-self/net/udp");
        table
            .map(|table| has_address(&table, ADDRESS))
            .map_err(NetworkError::Sockets)
    })
}

/// Whether a socket of the table (proc(5), /proc/net/udp) has the local address.
fn has_address(table: &str, address: Ipv4Addr) -> bool {
    // As it is in memory, read as a number.
    let address = format!("{:08X}:", u32::from_ne_bytes(address.octets()));
    let locals = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    locals.into_iter().any(|local| local.starts_with(&address))
}

/// Answers what the guest asks, until it hangs up, on a thread of its own.
pub(super) fn serve(namespace: &File, guest: UnixStream) -> Result<(), NetworkError> {
    let guest = guest.into_std().map_err(NetworkError::Sockets)?;
    namespace::stay_inside(namespace, "names", move || {
        // What the engine asks other servers itself must find its way back.
        let range = super::redirect::ENGINE_PORTS;
        let range = format!("{} {}", range.start(), range.end());
        if let Err(e) = std::fs::write(PORT_RANGE, &range) {
            // Its own names it knows without.
            warn!("write {range} to {PORT_RANGE}, for names that others answer for: {e}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(answer_all(guest))
    })
}

async fn answer_all(guest: StdUnixStream) -> io::Result<()> {
    relay(UnixStream::from_std(guest)?, RESOLVER).await
}

/// Takes questions and gives answers, in the order in which they come.
async fn relay(guest: impl AsyncRead + AsyncWrite, resolver: SocketAddr) -> io::Result<()> {
    let (mut answers, mut questions) = question::framed(guest).split();
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            question = questions.next(), if asked.len() < MAX_QUESTIONS => match question {
                Some(question) => asked.push(answer(question?, resolver)),
                None => return Ok(()),
            },
            Some(answer) = asked.next(), if !asked.is_empty() => answers.send(answer).await?,
        }
    }
}

/// Asks the resolver. Without an answer in time the message is empty.
async fn answer(question: Question, resolver: SocketAddr) -> Question {
    let Question {
        number,
        transport,
        message,
    } = question;
    let asked = async {
        match transport {
            Transport::Datagram => ask_by_datagram(&message, resolver).await,
            Transport::Connection => ask_by_connection(message, resolver).await,
        }
    };
    let answered = timeout(PATIENCE, asked).await;
    let message = match answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(message) => message,
        Err(e) => {
            debug!("ask {resolver} for a name: {e}");
            Bytes::new()
        }
    };
    Question {
        number,
        transport,
        message,
    }
}

async fn ask_by_datagram(message: &[u8], resolver: SocketAddr) -> io::Result<Bytes> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(message).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    let length = socket.recv(&mut answer).await?;
    Ok(Bytes::copy_from_slice(&answer[..length]))
}

async fn ask_by_connection(message: Bytes, resolver: SocketAddr) -> io::Result<Bytes> {
    // A message over TCP is framed as datagrams of a forward are (RFC 1035 §4.2.2).
    let mut connection = datagram::framed(TcpStream::connect(resolver).await?);
    connection.send(message).await?;
    match connection.next().await {
        Some(answer) => Ok(answer?.freeze()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_resolver_is_found_by_its_socket() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             52: 00000000:0035 00000000:0000 07 00000000:00000000\n";
        assert!(!has_address(table, ADDRESS));
        let native = u32::from_ne_bytes(ADDRESS.octets());
        let table = format!("{table} 53: {native:08X}:D431 00000000:0000 07\n");
        assert!(has_address(&table, ADDRESS));
    }

    /// A resolver that answers every question with the same words, backwards.
    async fn resolver() -> SocketAddr {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, asker)) = udp.recv_from(&mut buffer).await {
                buffer[..length].reverse();
                udp.send_to(&buffer[..length], asker).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((connection, _)) = tcp.accept().await {
                let mut connection = datagram::framed(connection);
                while let Some(Ok(mut message)) = connection.next().await {
                    message.reverse();
                    connection.send(message.freeze()).await.unwrap();
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn many_questions_are_answered_by_the_way_they_were_asked() {
        let (guest, ours) = tokio::io::duplex(256);
        tokio::spawn(relay(ours, resolver().await));
        let (mut sink, mut answers) = question::framed(guest).split();

        let count = u32::try_from(3 * MAX_QUESTIONS).unwrap();
        let asking = async {
            for number in 0..count {
                let transport = [Transport::Datagram, Transport::Connection][number as usize % 2];
                let message = Bytes::from(format!("name {number}"));
                let question = Question {
                    number,
                    transport,
                    message,
                };
                sink.send(question).await.unwrap();
            }
        };
        let answering = async {
            let mut seen = Vec::new();
            while seen.len() < count as usize {
                let answer = answers.next().await.unwrap().unwrap();
                let mut message = answer.message.to_vec();
                message.reverse();
                assert_eq!(message, format!("name {}", answer.number).as_bytes());
                seen.push(answer.number);
            }
            seen
        };
        let ((), mut seen) = tokio::join!(asking, answering);

        seen.sort_unstable();
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_question_that_nobody_takes_has_an_empty_answer() {
        let (guest, ours) = tokio::io::duplex(256);
        // Bound and let go again: nobody listens there.
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        tokio::spawn(relay(ours, address));
        let mut guest = question::framed(guest);

        for transport in [Transport::Datagram, Transport::Connection] {
            let question = Question {
                number: 7,
                transport,
                message: Bytes::from_static(b"name"),
            };
            guest.send(question.clone()).await.unwrap();
            let answer = guest.next().await.unwrap().unwrap();
            assert_eq!((answer.number, answer.message.len()), (7, 0));
        }
    }
}
