//! Names: an engine's resolver at 127.0.0.11, in a network namespace of the host, is asked from within
//! a container.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hull_tests::Host;

use crate::network::{Namespace, ip};

/// A resolver that has one address for every name. Gone when dropped.
struct Resolver {
    is_over: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Resolver {
    const ADDRESS: [u8; 4] = [198, 51, 100, 9];

    fn of(namespace: &Namespace) -> Self {
        ip(&format!("-n {} link set lo up", namespace.name()));
        let socket =
            namespace.inside(|| UdpSocket::bind("127.0.0.11:53").expect("listen at 127.0.0.11"));
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a timeout can be set");
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let answering = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let _ = Self::answer(&socket);
            }
        });
        Self {
            is_over,
            answering: Some(answering),
        }
    }

    /// RFC 1035 §4.1: the question again, as an answered one, and an address (A, IN) for the name at
    /// offset 12, for a minute.
    fn answer(socket: &UdpSocket) -> io::Result<()> {
        let mut message = vec![0; 512];
        let (length, asker) = socket.recv_from(&mut message)?;
        message.truncate(length);
        message[2..4].copy_from_slice(&[0x81, 0x80]);
        message[6..8].copy_from_slice(&[0, 1]);
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(Self::ADDRESS);
        socket.send_to(&message, asker)?;
        Ok(())
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(answering) = self.answering.take() {
            answering.join().expect("it does not panic");
        }
    }
}

const QUESTION: [&str; 4] = ["nslookup", "-type=a", "web.test", "127.0.0.11"];

#[test]
fn a_container_that_joins_a_machine_has_the_names_of_its_own_network() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let _resolver = Resolver::of(&namespace);
    let first = host.container("first").start(&["sleep", "1000"]);

    // The second begins where the first one's network was forgotten.
    for name in ["second", "third"] {
        let run = host
            .container(name)
            .joining(&first, &["pid"])
            .options(&["--with-ns", &namespace.option()])
            .run(&QUESTION);
        assert!(run.stdout.contains("198.51.100.9"), "{run:#?}");
    }

    let outside = first.exec("outside", &QUESTION);
    assert!(!outside.stdout.contains("198.51.100.9"), "{outside:#?}");
    first.end();
}

#[test]
fn a_container_with_a_user_namespace_has_names() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let _resolver = Resolver::of(&namespace);

    let run = host
        .container("mapped")
        .options(&["--uidmap", "0:1000:5000", "--gidmap", "0:2000:5000"])
        .options(&["--with-ns", &namespace.option()])
        .run(&QUESTION);

    assert!(run.stdout.contains("198.51.100.9"), "{run:#?}");
}
