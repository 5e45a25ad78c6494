//! Forwards to an agent that echoes, in capitals, what reaches its container.

use std::net::Ipv6Addr;

use async_trait::async_trait;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use ttrpc::Code;
use ttrpc::r#async::transport::{Listener, Socket as TtrpcSocket};
use ttrpc::r#async::{Client, Server, TtrpcContext};

use agent_protocol::{Agent, create_agent, datagram};

use super::*;

/// Nobody listens on this port of the container's.
const DEAD: u16 = 81;

struct Echo(Arc<Ports>);

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
        self.0.deliver(request.host_port, theirs.into());
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
}

struct Fixture {
    _forwards: Forwards,
    _server: Server,
    address: SocketAddr,
}

/// A forward that is served, at a free port of the loopback interface.
async fn forwarded(protocol: Protocol, container_port: u16) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let ports = Arc::<Ports>::default();
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(create_agent(Arc::new(Echo(Arc::clone(&ports)))));
    server.start().await.unwrap();
    let connection = UnixStream::connect(&socket).await.unwrap();
    let agent = AgentClient::new(Client::new(TtrpcSocket::new(connection)));

    let rule = Rule {
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
        _forwards: bound.serve("tide", &agent, &ports),
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
