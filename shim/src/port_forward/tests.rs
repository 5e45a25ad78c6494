//! Forwards to an agent that echoes, in capitals, what reaches its container.

use std::net::Ipv6Addr;
use std::sync::atomic::AtomicU16;

use async_trait::async_trait;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::time::sleep;
use ttrpc::Code;
use ttrpc::r#async::transport::{Listener, Socket as TtrpcSocket};
use ttrpc::r#async::{Client, Server, TtrpcContext};

use agent_protocol::{Agent, create_agent, datagram};

use super::*;

/// Nobody listens on this port of the container's.
const DEAD: u16 = 81;

#[derive(Clone, Default)]
struct Echo {
    ports: Arc<Ports>,
    /// What waits for clients in the container.
    listening: watch::Sender<Vec<agent::ListeningSocket>>,
}

#[async_trait]
impl Agent for Echo {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: agent::ForwardRequest,
    ) -> ttrpc::Result<agent::Empty> {
        if request.port == u32::from(DEAD) {
            let refused = ttrpc::get_status(Code::UNAVAILABLE, "connection refused");
            return Err(ttrpc::Error::RpcStatus(refused));
        }
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let theirs = theirs.into_std().unwrap();
        self.ports.deliver(request.host_port, theirs.into());
        if request.protocol.enum_value() == Ok(agent::Protocol::UDP) {
            tokio::spawn(async move {
                let mut host = datagram::framed(ours);
                while let Some(Ok(payload)) = host.next().await {
                    host.send(&payload.to_ascii_uppercase()[..]).await.unwrap();
                }
            });
        } else {
            tokio::spawn(async move {
                // Answers after the end of what was sent, so that half a connection has to live on.
                let mut sent = Vec::new();
                ours.read_to_end(&mut sent).await.unwrap();
                ours.write_all(&sent.to_ascii_uppercase()).await.unwrap();
            });
        }
        Ok(agent::Empty::new())
    }

    async fn listening(
        &self,
        _: &TtrpcContext,
        request: agent::ListeningRequest,
    ) -> ttrpc::Result<agent::ListeningResponse> {
        let mut listening = self.listening.subscribe();
        let changed = listening.wait_for(|sockets| *sockets != request.known);
        Ok(agent::ListeningResponse {
            sockets: changed.await.unwrap().clone(),
            ..Default::default()
        })
    }
}

/// A way to the agent, as long as the server is there.
async fn connected(echo: &Echo) -> (Server, AgentClient) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(create_agent(Arc::new(echo.clone())));
    server.start().await.unwrap();
    let connection = UnixStream::connect(&socket).await.unwrap();
    let agent = AgentClient::new(Client::new(TtrpcSocket::new(connection)));
    (server, agent)
}

struct Fixture {
    _forwards: Forwards,
    _server: Server,
    address: SocketAddr,
}

/// A forward that is served, at a free port of the loopback interface.
async fn forwarded(protocol: Protocol, container_port: u16) -> Fixture {
    let echo = Echo::default();
    let (server, agent) = connected(&echo).await;
    let rule = Rule {
        container_address: None,
        host: "127.0.0.1:0".parse().unwrap(),
        container_port,
        protocol,
    };
    let bound = Bound::bind(&[rule]).unwrap();
    let address = match &bound.sockets[0].1 {
        Socket::Tcp(listener) => listener.local_addr().unwrap(),
        Socket::Udp(socket) => socket.local_addr().unwrap(),
    };
    Fixture {
        _forwards: bound.serve("tide", &agent, &echo.ports),
        _server: server,
        address,
    }
}

#[tokio::test]
async fn half_closed_connections_are_passed_on() {
    let fixture = forwarded(Protocol::Tcp, 80).await;
    let mut client = TcpStream::connect(fixture.address).await.unwrap();

    client.write_all(b"tide").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();

    assert_eq!(answer, "TIDE");
}

#[tokio::test]
async fn where_nobody_listens_the_client_is_reset() {
    let fixture = forwarded(Protocol::Tcp, DEAD).await;
    let mut client = TcpStream::connect(fixture.address).await.unwrap();

    let error = client.read(&mut [0]).await.unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn each_client_of_a_datagram_port_gets_its_own_answers() {
    let fixture = forwarded(Protocol::Udp, 53).await;
    let client = async |text: &'static [u8]| {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(fixture.address).await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..2 {
            socket.send(text).await.unwrap();
            let mut answer = [0; 16];
            let length = socket.recv(&mut answer).await.unwrap();
            answers.push(answer[..length].to_vec());
        }
        answers
    };

    let (one, two) = tokio::join!(client(b"ebb"), client(b"flow"));

    assert_eq!(one, [b"EBB", b"EBB"]);
    assert_eq!(two, [b"FLOW", b"FLOW"]);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rule = Rule {
        container_address: None,
        host: taken.local_addr().unwrap(),
        container_port: 80,
        protocol: Protocol::Tcp,
    };

    let error = chain(&Bound::bind(&[rule]).unwrap_err());

    assert!(error.contains(&rule.host.to_string()), "{error}");
    assert!(error.contains("in use"), "{error}");
}

#[tokio::test]
async fn the_unspecified_address_takes_both_families() {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let Socket::Tcp(listener) = bind_to(any, Protocol::Tcp).unwrap() else {
        panic!("a listener was asked for");
    };
    let port = listener.local_addr().unwrap().port();

    let (client, accepted) =
        tokio::join!(TcpStream::connect(("127.0.0.1", port)), listener.accept());

    client.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn the_host_listens_where_the_container_does_and_as_long() {
    let echo = Echo::default();
    let (_server, agent) = connected(&echo).await;
    let forwards = follow::follow(0, &Arc::new(AtomicU16::new(1024)), &agent, &echo.ports);
    // A port that is in use at first, and one that is free.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (taken_at, free_at) = (taken.local_addr().unwrap(), free.local_addr().unwrap());
    drop(free);
    let socket = |at: SocketAddr| agent::ListeningSocket {
        address: at.ip().to_string(),
        port: at.port().into(),
        ..Default::default()
    };
    let answers = async |at: SocketAddr| {
        let mut client = TcpStream::connect(at).await.ok()?;
        client.write_all(b"tide").await.ok()?;
        client.shutdown().await.ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.ok()?;
        (answer == "TIDE").then_some(())
    };
    let until = async |what: &str, at: SocketAddr, served: bool| {
        for _ in 0..1000 {
            if answers(at).await.is_some() == served {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}");
    };

    // And one that takes a right.
    let privileged = "127.0.0.1:1023".parse().unwrap();
    let all = [taken_at, privileged, free_at].map(socket);
    echo.listening.send_replace(all.to_vec());
    until("the free port is served", free_at, true).await;
    assert!(answers(privileged).await.is_none());
    drop(taken);
    until("the other one is, once it can be", taken_at, true).await;
    echo.listening.send_replace(vec![socket(taken_at)]);
    until("what the container lets go is free", free_at, false).await;
    assert!(TcpListener::bind(free_at).await.is_ok());
    drop(forwards);
    until("all are with the container's end", taken_at, false).await;
}
