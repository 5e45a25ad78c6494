//! Containers with the host's own network (`ctr run --net-host`, `docker run --network host`).

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use hull_tests::{Container, Host, Process, command, wait};

use crate::forward::SOCAT;
use crate::network::Namespace;

/// Says "tide" to one client; tells its address, once there was one.
fn serve(listener: TcpListener) -> Receiver<IpAddr> {
    let (client, clients) = channel();
    thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a socket that listens");
        stream.write_all(b"tide\n").expect("the client reads");
        // The test may have failed meanwhile.
        let _ = client.send(peer.ip());
    });
    clients
}

/// A listener on a free port of the address.
fn listener(ip: &str) -> (TcpListener, u16) {
    let ip: IpAddr = ip.parse().expect("an address");
    let listener = TcpListener::bind((ip, 0)).expect("the address is the host's");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

/// What a web server answers, if it does.
fn get(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(wait::PATIENCE)).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.rsplit_once("\r\n\r\n")?.1.trim().to_owned())
}

/// The shim of a container that is the first in its machine, and its pasta.
fn shim_and_pasta(container: &Container) -> (Process, Process) {
    let shim = Process::of(&container.vmm().status("PPid"));
    let mut children = shim.children().into_iter();
    let pasta = children.find(|child| child.status("Name").starts_with("pasta"));
    (shim, pasta.expect("pasta runs"))
}

#[track_caller]
fn assert_no_pasta() {
    assert_eq!(command("pidof", &["pasta", "pasta.avx2"], b"").status, 1);
}

#[test]
fn a_container_with_the_hosts_network_reaches_whom_the_host_does() {
    let host = Host::take();
    // Of the host's one network its own end has 192.0.2.1.
    let namespace = Namespace::with_veth("hull-test");
    let (elsewhere, elsewhere_port) = namespace.inside(|| listener("192.0.2.7"));
    let (loopback, loopback_port) = listener("127.0.0.1");
    let (six, six_port) = listener("::1");
    let (own, own_port) = listener("192.0.2.1");
    let clients = [elsewhere, loopback, six, own].map(serve);

    let script = format!(
        "ip addr; for server in '192.0.2.7 {elsewhere_port}' '127.0.0.1 {loopback_port}' \
         '::1 {six_port}' '192.0.2.1 {own_port}'; do nc $server </dev/null; done
         nc 127.0.0.1 9 </dev/null 2>&1"
    );
    let run = host
        .container("client")
        .options(&["--net-host"])
        .run(&["sh", "-c", &script]);

    assert!(run.stdout.contains("inet 192.0.2.1/24"), "{run:#?}");
    let refused = run.stdout.trim().ends_with("Connection refused");
    assert!(
        refused && run.stdout.contains("tide\ntide\ntide\ntide\n"),
        "{run:#?}"
    );
    let clients = clients.map(|client| client.try_recv().expect("it was served").to_string());
    assert_eq!(clients, ["192.0.2.1", "127.0.0.1", "::1", "192.0.2.1"]);
}

#[test]
fn the_hosts_resolver_and_datagrams_reach_the_host() {
    let host = Host::take();
    // One that knows one address, and a service that says everything again.
    let resolver = UdpSocket::bind("127.0.0.53:53").unwrap();
    let echo = UdpSocket::bind("127.0.0.1:8100").unwrap();
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, client)) = resolver.recv_from(&mut message) {
            let mut answer = message[..length].to_vec();
            // RFC 1035 §4.1: an answer, one record, for the name that was asked for.
            answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7]);
            let _ = resolver.send_to(&answer, client);
        }
    });
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, client)) = echo.recv_from(&mut message) {
            let _ = echo.send_to(&message[..length], client);
        }
    });

    // SENDTO is of a socket that is not connected, and looks at where an answer comes from.
    let script = "echo nameserver 127.0.0.53 >/etc/resolv.conf
        nslookup -type=a tide.example 127.0.0.53
        echo ebb | (socat -T 20 - UDP-SENDTO:127.0.0.1:8100)";
    let run = host
        .container("asking")
        .options(&["--net-host"])
        .options(&["--mount", "type=bind,src=/usr,dst=/opt,options=rbind:ro"])
        .run(&["timeout", "40", "sh", "-c", &format!("{SOCAT}{script}")]);

    assert!(run.stdout.contains("198.51.100.7"), "{run:#?}");
    assert!(run.stdout.contains("ebb"), "{run:#?}");
}

#[test]
fn a_port_that_the_container_listens_at_is_the_hosts_until_it_lets_go() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let script = "echo tide >/index.html
        httpd -p 8097 -h / ; httpd -p 127.0.0.1:8098 -h /
        until [ -e /done ]; do sleep 0.1; done
        for process in /proc/[0-9]*; do grep -q ^httpd $process/cmdline && kill ${process#/proc/}; done
        sleep 1000";
    let container = host
        .container("server")
        .options(&["--net-host"])
        .start(&["sh", "-c", script]);

    wait::until("127.0.0.1 answers", || get("127.0.0.1:8097"));
    wait::until("the host's address answers", || get("192.0.2.1:8097"));
    let answer = namespace.inside(|| get("192.0.2.1:8097"));
    assert_eq!(answer.as_deref(), Some("tide"), "others reach it");
    // What listens on 127.0.0.1 is there alone.
    wait::until("the other port answers", || get("127.0.0.1:8098"));
    assert!(TcpStream::connect("192.0.2.1:8098").is_err());
    assert!(TcpListener::bind("127.0.0.1:8097").is_err(), "it is in use");

    assert_eq!(container.exec("done", &["touch", "/done"]).status, 0);

    wait::until("the host has its port again", || {
        TcpListener::bind("0.0.0.0:8097").ok()
    });
    container.end();
    assert_no_pasta();
}

#[test]
fn a_port_that_the_host_has_stays_the_hosts_and_the_container_has_its_own() {
    let host = Host::take();
    let (taken, port) = listener("127.0.0.1");
    let script = format!("echo ebb >/index.html; httpd -f -p {port} -h /");
    let container = host
        .container("second")
        .options(&["--net-host"])
        .start(&["sh", "-c", &script]);
    let inside = |name: &str| {
        let url = format!("http://127.0.0.1:{port}/");
        container.exec(name, &["wget", "-q", "-O", "-", &url])
    };

    // The host's answers nothing.
    let mut tries = 0..;
    let answer = wait::until("what listens in the container comes first", || {
        let run = inside(&format!("exec{}", tries.next()?));
        (run.status == 0).then_some(run.stdout)
    });
    assert_eq!(answer.trim(), "ebb");
    let log = wait::until("the shim says so", || {
        let log = std::fs::read_to_string("/var/log/containerd.log").ok()?;
        let mut lines = log.lines().filter(|line| line.contains(&port.to_string()));
        lines
            .find(|line| line.contains("not its on the host"))
            .map(str::to_owned)
    });
    assert!(log.contains("in use"), "{log}");

    drop(taken);
    let answer = wait::until("it gets the port", || get(&format!("127.0.0.1:{port}")));
    assert_eq!(answer, "ebb");
    container.end();
}

#[test]
fn datagrams_reach_a_container_with_the_hosts_network() {
    let host = Host::take();
    let container = host
        .container("datagrams")
        .options(&["--net-host"])
        .options(&["--mount", "type=bind,src=/usr,dst=/opt,options=rbind:ro"])
        .start(&[
            "sh",
            "-c",
            &format!("{SOCAT} socat UDP-RECVFROM:8099,fork EXEC:/bin/cat"),
        ]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();

    wait::until("a datagram comes back", || {
        client.send_to(b"tide", "127.0.0.1:8099").ok()?;
        let mut buffer = [0; 16];
        let (length, _) = client.recv_from(&mut buffer).ok()?;
        (&buffer[..length] == b"tide").then_some(())
    });
    container.end();
    assert!(UdpSocket::bind("127.0.0.1:8099").is_ok());
}

#[test]
fn containers_share_the_hosts_network_until_the_last_of_them_ends() {
    let host = Host::take();
    let (loopback, port) = listener("127.0.0.1");
    let clients = serve(loopback);
    let first = host
        .container("first")
        .options(&["--net-host"])
        .start(&["sleep", "1000"]);
    let script = "echo tide >/index.html; httpd -f -p 8097 -h /";
    let joined = host
        .container("joined")
        .joining(&first, &["network"])
        .start(&["sh", "-c", script]);

    wait::until("its port is the host's", || get("127.0.0.1:8097"));
    first.end();
    assert_eq!(get("127.0.0.1:8097").as_deref(), Some("tide"));
    let run = joined.exec("out", &["nc", "127.0.0.1", &port.to_string()]);
    assert_eq!(run.output(), "tide");
    assert!(clients.try_recv().is_ok());
    joined.end();
    assert!(TcpListener::bind("0.0.0.0:8097").is_ok());
    assert_no_pasta();
}

#[test]
fn a_container_may_have_the_hosts_network_in_a_machine_that_has_another() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let script = "echo tide >/index.html; httpd -f -p 8097 -h /";
    let joined = host
        .container("joined")
        .joining(&first, &["ipc"])
        .options(&["--net-host"])
        .start(&["sh", "-c", script]);

    wait::until("its port is the host's", || get("127.0.0.1:8097"));
    // Which is a matter of that one alone.
    let (_listener, port) = listener("127.0.0.1");
    let run = first.exec("out", &["nc", "-w", "5", "127.0.0.1", &port.to_string()]);
    assert_ne!(run.status, 0, "{run:#?}");
    joined.end();
    assert_no_pasta();
    first.end();
}

#[test]
fn nothing_of_the_hosts_network_outlives_a_shim_that_was_killed() {
    let host = Host::take();
    let script = "echo tide >/index.html; httpd -f -p 8097 -h /";
    let container = host
        .container("killed")
        .options(&["--net-host"])
        .start(&["sh", "-c", script]);
    wait::until("its port is the host's", || get("127.0.0.1:8097"));
    let (shim, _) = shim_and_pasta(&container);

    assert_eq!(command("kill", &["-KILL", shim.pid()], b"").status, 0);

    container.wait_until_given_up();
    let _ = host.ctr(&["task", "rm", "--force", "killed"]);
    assert_eq!(host.ctr(&["container", "rm", "killed"]).status, 0);
    assert!(TcpListener::bind("0.0.0.0:8097").is_ok());
    assert_no_pasta();
}

#[test]
fn a_container_ends_with_its_pasta_and_the_log_says_so() {
    let host = Host::take();
    let container = host
        .container("cut")
        .options(&["--net-host"])
        .start(&["sleep", "1000"]);
    let (_, pasta) = shim_and_pasta(&container);

    assert_eq!(command("kill", &["-KILL", pasta.pid()], b"").status, 0);

    container.wait_until_stopped();
    let log = std::fs::read_to_string("/var/log/containerd.log").unwrap();
    assert!(log.contains("pasta ended: signal: 9"), "{log}");
    assert_eq!(container.remove(), 137);
}

#[test]
fn the_hosts_network_needs_pasta_and_says_so() {
    let host = Host::take();
    let _hidden = host.hide("/usr/bin/pasta");

    let run = host
        .container("alone")
        .options(&["--net-host"])
        .run(&["true"]);

    assert_ne!(run.status, 0);
    assert!(run.stderr.contains("install the package passt"), "{run:#?}");
}

#[test]
fn pasta_may_do_little_on_its_host() {
    let host = Host::take();
    let container = host
        .container("confined")
        .options(&["--net-host"])
        .start(&["sleep", "1000"]);
    let (_, pasta) = shim_and_pasta(&container);

    // As the machine does, and with SYS_ADMIN of all rights.
    assert_eq!(pasta.status("Uid"), container.vmm().status("Uid"));
    assert_eq!(pasta.status("CapPrm"), "0000000000200000");
    assert_eq!(pasta.status("NoNewPrivs"), "1");
    assert_eq!(pasta.status("Seccomp"), "2");
    assert_eq!(pasta.root(), Vec::<String>::new());
    for kind in ["mnt", "ipc", "uts"] {
        assert_ne!(pasta.namespace(kind), Process::of("self").namespace(kind));
    }
    container.end();
    assert_no_pasta();
}
