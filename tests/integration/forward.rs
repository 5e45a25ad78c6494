//! Ports of the host that lead into a container (`io.hull.port-forward`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use hull_tests::{Container, Host, wait};

/// The test host's socat, in an image that has none: `/opt` is the host's `/usr`. It takes the
/// place of the shell that calls it, and waits for an answer after the end of the question.
pub(super) const SOCAT: &str = r#"socat() {
    exec /opt/lib*/ld-linux-*.so.* --library-path "$(echo /opt/lib/*-linux-gnu)" /opt/bin/socat -t 60 "$@"
}
"#;

/// A container with these forwards, in which `script` runs and can call `socat`.
fn serving<'a>(host: &'a Host, name: &'a str, forwards: &str, script: &str) -> Container<'a> {
    let annotation = format!("io.hull.port-forward={forwards}");
    host.container(name)
        .options(&["--annotation", &annotation])
        .options(&["--mount", "type=bind,src=/usr,dst=/opt,options=rbind:ro"])
        .start(&["sh", "-c", &format!("{SOCAT}{script}")])
}

/// What the service at `address` answers to all of `sent`; `None` while nobody serves there.
fn ask(address: &str, sent: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).expect("the host listens");
    let patience = stream.set_read_timeout(Some(wait::PATIENCE));
    patience.expect("a timeout can be set");
    let mut answer = Vec::new();
    // Written while the answer is read: neither side buffers as much as there is.
    thread::scope(|scope| {
        let mut writing = stream.try_clone().expect("a socket can be cloned");
        scope.spawn(move || {
            let _ = writing.write_all(sent);
            let _ = writing.shutdown(Shutdown::Write);
        });
        match stream.read_to_end(&mut answer) {
            Ok(_) => Some(answer),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
            Err(e) => panic!("read from {address}: {e}"),
        }
    })
}

#[test]
fn a_container_that_has_joined_another_is_reached_in_its_own_network() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let joined = host
        .container("joined")
        .joining(&first, &["ipc"])
        .options(&["--annotation", "io.hull.port-forward=127.0.0.1:8080:80"])
        .start(&["nc", "-ll", "-p", "80", "-e", "hostname"]);

    let answer = wait::until("the service listens", || {
        ask("127.0.0.1:8080", b"").filter(|answer| !answer.is_empty())
    });

    let name = joined.exec("name", &["hostname"]);
    assert_eq!(String::from_utf8_lossy(&answer).trim(), name.output());
    joined.end();
    first.end();
}

#[test]
fn connections_reach_the_container_whole_many_at_once_and_half_closed() {
    let host = Host::take();
    let script =
        "socat TCP-LISTEN:80,fork,backlog=128 EXEC:cat & socat TCP-LISTEN:81,fork EXEC:'wc -c'";
    let forwards = "127.0.0.1:8080:80/tcp, 127.0.0.1:8081:81";
    let container = serving(&host, "web", forwards, script);
    wait::until("both services listen", || {
        ask("127.0.0.1:8080", b"tide").and(ask("127.0.0.1:8081", b""))
    });

    // The answer comes after the end of what was asked: half a connection lives on.
    assert_eq!(
        ask("127.0.0.1:8081", b"ebb and flow"),
        Some(b"12\n".to_vec())
    );

    // More than all buffers on the way hold, so each of them makes its writer wait.
    let much: Vec<u8> = (0..=250).cycle().take(8 << 20).collect();
    let answer = ask("127.0.0.1:8080", &much).expect("the service answers");
    assert_eq!(answer.len(), much.len());
    assert!(answer == much, "the bytes are others than those sent");

    thread::scope(|scope| {
        for number in 0..50_u8 {
            let text = vec![number; 1000];
            scope.spawn(move || assert!(ask("127.0.0.1:8080", &text) == Some(text), "{number}"));
        }
    });
    container.end();
}

#[test]
fn a_service_that_is_restarted_is_found_again() {
    let host = Host::take();
    let script = "mkfifo /again; while :; do socat TCP-LISTEN:80,fork,backlog=128 EXEC:cat & pid=$!; \
                  read word </again; kill $pid; read word </again; done";
    let container = serving(&host, "again", "127.0.0.1:8080:80", script);
    let up = || wait::until("the service answers", || ask("127.0.0.1:8080", b"tide"));

    assert_eq!(up(), b"tide");
    let stop = container.exec("stop", &["sh", "-c", "echo stop >/again"]);
    assert_eq!(stop.status, 0, "{stop:?}");
    wait::until("nobody answers", || {
        ask("127.0.0.1:8080", b"tide").is_none().then_some(())
    });
    let start = container.exec("start", &["sh", "-c", "echo start >/again"]);
    assert_eq!(start.status, 0, "{start:?}");
    assert_eq!(up(), b"tide");
    container.end();
}

#[test]
fn datagrams_and_ipv6_are_forwarded() {
    let host = Host::take();
    let script = "socat UDP6-RECVFROM:53,fork EXEC:'sed s/?/!/' & socat TCP6-LISTEN:80,ipv6only,fork EXEC:cat";
    let forwards = "127.0.0.1:5353:53/udp, [::1]:8080:80";
    let container = serving(&host, "six", forwards, script);

    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect("127.0.0.1:5353").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let answer = wait::until("the datagram is answered", || {
        client.send(b"tide?").unwrap();
        let mut answer = [0; 16];
        let length = client.recv(&mut answer).ok()?;
        Some(answer[..length].to_vec())
    });
    assert_eq!(answer, b"tide!");
    let answer = wait::until("the IPv6 service answers", || ask("[::1]:8080", b"tide"));
    assert_eq!(answer, b"tide");
    container.end();
}

#[test]
fn a_port_in_use_or_no_port_at_all_is_refused() {
    let host = Host::take();
    let _taken = TcpListener::bind("127.0.0.1:8080").unwrap();
    let run = |annotation: &str| {
        host.container("taken")
            .options(&["--annotation", annotation])
            .run(&["true"])
    };

    for (annotation, word) in [
        ("io.hull.port-forward=127.0.0.1:8080:80", "127.0.0.1:8080"),
        ("io.hull.port-forward=8080", "\"8080\""),
        ("io.hull.portforward=8080:80", "io.hull.portforward"),
    ] {
        let run = run(annotation);
        assert_eq!(run.status, 1, "{run:#?}");
        assert!(run.stderr.contains(word), "{run:#?}");
    }
}
