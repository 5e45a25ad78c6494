//! The network that an engine has made for a container, in a namespace given by its path.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use hull_tests::{Container, Finished, Host, command, wait};
use nix::sched::{CloneFlags, setns};

/// A namespace with one end of a veth pair, as CNI's bridge plugin would make it; the host has the
/// other. Gone when dropped.
pub(super) struct Namespace(&'static str);

impl Namespace {
    pub(super) fn with_veth(name: &'static str) -> Self {
        let namespace = Self(name);
        for words in [
            &format!("netns add {name}")[..],
            "link add hosts-end type veth peer name eth7",
            &format!("link set eth7 address 02:00:5e:10:00:07 mtu 1400 netns {name}"),
            "addr add 192.0.2.1/24 dev hosts-end",
            "addr add 2001:db8::1/64 dev hosts-end nodad",
            "link set hosts-end mtu 1400 up",
            &format!("-n {name} addr add 192.0.2.7/24 dev eth7"),
            &format!("-n {name} addr add 2001:db8::7/64 dev eth7 nodad"),
            &format!("-n {name} link set eth7 up"),
            &format!("-n {name} route add default via 192.0.2.1"),
            &format!("-n {name} route add 198.51.100.0/24 dev eth7 metric 50"),
            &format!("-n {name} -6 route add default via 2001:db8::1"),
            &format!(
                "-n {name} neigh add 192.0.2.99 lladdr 02:00:5e:10:00:99 dev eth7 nud permanent"
            ),
        ] {
            ip(words);
        }
        namespace
    }

    /// Does something on a thread that is in it.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(format!("/run/netns/{}", self.0)).expect("it is there");
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
                work()
            });
            worker.join().expect("the work does not panic")
        })
    }

    /// As `ip netns` knows it.
    pub(super) fn name(&self) -> &str {
        self.0
    }

    /// The option of `ctr run` that puts a container here.
    pub(super) fn option(&self) -> String {
        format!("network:/run/netns/{}", self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
        // What `ip netns` mounts at its first use, and leaves.
        let unmounted = command("umount", &["/run/netns"], b"");
        assert_eq!(unmounted.status, 0, "{unmounted:#?}");
    }
}

#[track_caller]
pub(super) fn ip(words: &str) -> Finished {
    let words: Vec<&str> = words.split(' ').collect();
    let done = command("ip", &words, b"");
    assert_eq!(done.status, 0, "{done:#?}");
    done
}

#[test]
fn a_container_has_the_interfaces_of_its_namespace() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");

    let script = "ip addr show eth7; ip route; ip -6 route; ip neigh; \
                  ping -c 1 -W 10 192.0.2.1; ping -c 1 -W 10 2001:db8::1; true";
    let run = host
        .container("net")
        .options(&["--with-ns", &namespace.option()])
        .run(&["sh", "-c", script]);

    let said = run.output();
    for expected in [
        "mtu 1400",
        "02:00:5e:10:00:07",
        "inet 192.0.2.7/24",
        "inet6 2001:db8::7/64",
        "default via 192.0.2.1 dev eth7",
        "198.51.100.0/24 dev eth7 scope link  metric 50",
        "default via 2001:db8::1 dev eth7",
        "192.0.2.99 dev eth7 lladdr 02:00:5e:10:00:99",
    ] {
        assert!(said.contains(expected), "no {expected:?} in: {said}");
    }
    assert_eq!(said.matches("1 packets received").count(), 2, "{said}");
    assert_as_before(&namespace);
}

/// The namespace's own interface works again, and nothing of Hull's is in it.
#[track_caller]
fn assert_as_before(namespace: &Namespace) {
    let left = ip("-n hull-test link").stdout + &command_in(namespace, "tc qdisc").stdout;
    assert!(
        !left.contains("hull0") && !left.contains("ingress"),
        "{left}"
    );
    let ping = command_in(namespace, "ping -c 1 -W 10 192.0.2.1");
    assert_eq!(ping.status, 0, "{ping:#?}");
}

/// Two machines with a cable each to one interface: the second would cut off the first.
#[test]
fn the_network_of_a_machine_is_not_another_containerd_namespaces_to_take() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let owner = host.container("owner");
    let owner = owner.options(&["--with-ns", &namespace.option()]);
    let owner = owner.start(&["sleep", "1000"]);
    let image = host.shared("busybox.tar").display().to_string();
    let elsewhere = |args: &[&str]| host.ctr(&[&["--namespace", "elsewhere"], args].concat());
    elsewhere(&["image", "import", &image]).output();

    let option = format!("--with-ns={}", namespace.option());
    let run = ["run", "--rm", "--runtime", hull_tests::RUNTIME, &option];
    let refused = elsewhere(&[&run[..], &[hull_tests::IMAGE, "thief", "true"]].concat());

    assert_eq!(refused.status, 1, "{refused:#?}");
    assert!(refused.stderr.contains("default/owner"), "{refused:#?}");
    let ping = owner.exec("ping", &["ping", "-c", "1", "-W", "10", "192.0.2.1"]);
    assert_eq!(ping.status, 0, "{ping:#?}");
    owner.end();
    elsewhere(&["image", "rm", "--sync", hull_tests::IMAGE]).output();
    wait::until("nothing is left in that containerd namespace", || {
        let removed = elsewhere(&["namespace", "rm", "elsewhere"]);
        (removed.status == 0).then_some(())
    });
}

/// The machine boots with one processor, and a driver then uses one pair of queues; the agent has it use the
/// others when there are more.
#[test]
fn a_container_of_two_processors_has_a_card_that_uses_two_pairs_of_queues() {
    let host = Host::take();
    let _hidden = host.hide("/etc/hull/config.toml");
    fs::write("/etc/hull/config.toml", "vcpus = 2\n").unwrap();
    let namespace = Namespace::with_veth("hull-test");
    let container = host
        .container("wide")
        .options(&["--with-ns", &namespace.option()])
        .start(&["sleep", "1000"]);

    let queues = container.exec("look", &["ls", "/sys/class/net/eth7/queues"]);
    let names: Vec<_> = queues.output().split_whitespace().collect();
    assert_eq!(names, ["rx-0", "rx-1", "tx-0", "tx-1"], "{queues:#?}");
    let ping = |name: &str, processor| {
        let words = [
            "taskset",
            processor,
            "ping",
            "-c",
            "3",
            "-W",
            "10",
            "192.0.2.1",
        ];
        let ping = container.exec(name, &words);
        assert_eq!(ping.status, 0, "{ping:#?}");
    };
    ping("by-the-first", "1");
    ping("by-the-second", "2");

    container.end();
    fs::remove_file("/etc/hull/config.toml").unwrap();
    assert_as_before(&namespace);
}

/// A megabyte each way, one after the other, with the offloads of taps.
#[test]
fn with_vhost_net_a_container_has_its_network_all_the_same() {
    let host = Host::take();
    let _hidden = host.hide("/etc/hull/config.toml");
    fs::write("/etc/hull/config.toml", "vhost_net = true\n").unwrap();
    let namespace = Namespace::with_veth("hull-test");
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let container = host
        .container("vhost")
        .options(&["--with-ns", &namespace.option()])
        .start(&["sleep", "1000"]);

    let cards = fs::read_dir(container.vmm().path("fd")).unwrap().flatten();
    let cards = cards
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/vhost-net")));
    assert_eq!(cards.count(), 4);
    let ping = container.exec("ping", &["ping", "-c", "1", "-W", "10", "192.0.2.1"]);
    assert_eq!(ping.status, 0, "{ping:#?}");
    // Nobody waits for it when the container has not connected.
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = vec![0; 1 << 20];
        stream.read_exact(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let script = format!("head -c 1048576 /dev/zero | nc 192.0.2.1 {port} | wc -c");
    let run = container.exec("both-ways", &["sh", "-c", &script]);
    assert_eq!(run.output(), "1048576", "{run:?}");
    server.join().unwrap();

    container.end();
    fs::remove_file("/etc/hull/config.toml").unwrap();
    assert_as_before(&namespace);
}

#[test]
fn a_running_container_is_connected_to_networks_and_disconnected() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let container = host
        .container("connected")
        .options(&["--with-ns", &namespace.option()])
        .start(&["sleep", "1000"]);
    let shows = |what: &str, words: &[&str], accept: &dyn Fn(&str) -> bool| {
        wait::until(what, || {
            let seen = container.exec("look", words);
            accept(&seen.stdout).then_some(seen.stdout)
        })
    };

    // As dockerd connects one: an interface comes under another name, and is set up in steps.
    for words in [
        "link add other-end type veth peer name tmp0",
        "addr add 198.18.0.1/24 dev other-end",
        "link set other-end up",
        "link set tmp0 netns hull-test",
        "-n hull-test link set tmp0 name eth8 address 02:00:5e:10:00:08",
        "-n hull-test addr add 198.18.0.8/24 dev eth8",
        "-n hull-test link set eth8 up",
    ] {
        ip(words);
    }
    shows(
        "the second interface",
        &["ip", "addr", "show", "eth8"],
        &|said| said.contains("198.18.0.8/24") && said.contains("02:00:5e:10:00:08"),
    );
    let ping = container.exec("ping", &["ping", "-c", "1", "-W", "10", "198.18.0.1"]);
    assert_eq!(ping.status, 0, "{ping:#?}");

    ip("-n hull-test route del default via 192.0.2.1");
    ip("-n hull-test route add default via 198.18.0.1");
    ip("-n hull-test addr add 203.0.113.8/24 dev eth7");
    ip("-n hull-test addr del 192.0.2.7/24 dev eth7");
    shows("the new gateway", &["ip", "route"], &|said| {
        said.contains("default via 198.18.0.1 dev eth8") && !said.contains("via 192.0.2.1")
    });
    shows(
        "the new address",
        &["ip", "addr", "show", "eth7"],
        &|said| said.contains("203.0.113.8/24") && !said.contains("192.0.2.7/24"),
    );

    ip("link del other-end");
    let said = shows("the interface is gone", &["ip", "addr"], &|said| {
        !said.contains("eth8") && !said.contains("198.18.0.8")
    });
    assert!(said.contains("203.0.113.8/24"), "{said}");
    container.end();
}

fn command_in(namespace: &Namespace, words: &str) -> Finished {
    let words = format!("netns exec {} {words}", namespace.0);
    let words: Vec<&str> = words.split(' ').collect();
    command("ip", &words, b"")
}

#[test]
fn a_namespace_serves_one_container_after_another() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();

    for name in ["first", "second"] {
        // Nobody waits for it when the container has not connected.
        let listener = listener.try_clone().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(&vec![b'x'; 1 << 20]).unwrap();
            peer.ip().to_string()
        });
        let run = host
            .container(name)
            .options(&["--with-ns", &namespace.option()])
            .run(&[
                "sh",
                "-c",
                &format!("nc 192.0.2.1 {port} </dev/null | wc -c"),
            ]);
        assert_eq!(run.output(), "1048576", "{run:?}");
        assert_eq!(server.join().unwrap(), "192.0.2.7");
    }
}

#[test]
fn root_of_a_user_namespace_has_its_network() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");

    let script = "ip addr show eth7; ip link set eth7 mtu 1280 && cat /sys/class/net/eth7/mtu; \
                  ping -c 1 -W 10 192.0.2.1";
    let run = host
        .container("mapped")
        .options(&["--uidmap", "0:1000:5000", "--gidmap", "0:2000:5000"])
        .options(&[
            "--cap-add",
            "CAP_NET_ADMIN",
            "--with-ns",
            &namespace.option(),
        ])
        .run(&["sh", "-c", script]);

    let said = run.output();
    for expected in ["inet 192.0.2.7/24", "1280", "1 packets received"] {
        assert!(said.contains(expected), "no {expected:?} in: {run:#?}");
    }
    assert_as_before(&namespace);
}

#[test]
fn a_container_that_joins_another_but_not_its_network_has_its_own() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let first = host.container("first").start(&["sleep", "1000"]);

    for name in ["second", "third"] {
        let joined = host
            .container(name)
            .joining(&first, &["pid"])
            .options(&["--with-ns", &namespace.option()])
            .start(&["sleep", "1000"]);
        let link = |container: &Container<'_>, kind: &str| {
            let path = format!("/proc/self/ns/{kind}");
            let link = container.exec(kind, &["readlink", &path]);
            link.output().to_owned()
        };
        assert_eq!(link(&joined, "pid"), link(&first, "pid"));
        assert_ne!(link(&joined, "net"), link(&first, "net"));
        let on_the_host = fs::metadata(format!("/proc/{}/ns/net", joined.pid()));
        let given = fs::metadata("/run/netns/hull-test").unwrap();
        assert_eq!(on_the_host.unwrap().ino(), given.ino());
        let script = "ip addr show eth7; ip addr show lo; ping -c 1 -W 10 2001:db8::1";
        let looked = joined.exec("look", &["sh", "-c", script]);
        for expected in [
            "inet 192.0.2.7/24",
            "02:00:5e:10:00:07",
            "inet 127.0.0.1/8",
            "1 packets received",
        ] {
            let said = looked.output();
            assert!(said.contains(expected), "no {expected:?} in: {looked:#?}");
        }
        let others = first.exec("others", &["ip", "addr"]);
        assert!(!others.output().contains("192.0.2.7"), "{others:#?}");

        joined.end();
        // What is left of the machine does not hold what was its.
        assert_as_before(&namespace);
    }
    first.end();
}

#[test]
fn a_machines_first_container_comes_back_with_its_network_while_others_are_in_it() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let first = |host| {
        Host::container(host, "first")
            .options(&["--with-ns", &namespace.option()])
            .start(&["sleep", "1000"])
    };
    let before = first(&host);
    let other = host.container("other").joining(&before, &["ipc"]);
    let other = other.start(&["sleep", "1000"]);
    assert_eq!(before.end(), 137);
    assert_as_before(&namespace);

    let again = first(&host);
    let looked = again.exec("look", &["ping", "-c", "1", "-W", "10", "192.0.2.1"]);
    assert_eq!(looked.status, 0, "{looked:#?}");
    let machines = command("pidof", &["hull-vmm"], b"");
    assert_eq!(machines.stdout.split_whitespace().count(), 1);
    assert_ne!(again.pid().to_string(), machines.stdout.trim());

    assert_eq!(other.end(), 137);
    assert_eq!(again.exec("still", &["echo", "here"]).output(), "here");
    assert_eq!(again.end(), 137);
    assert_as_before(&namespace);
}

#[test]
fn the_host_reaches_a_container_at_its_address() {
    let host = Host::take();
    let namespace = Namespace::with_veth("hull-test");
    let container = host
        .container("served")
        .options(&["--with-ns", &namespace.option()])
        .start(&["nc", "-ll", "-p", "80", "-e", "hostname"]);

    let answer = wait::until("the container answers", || {
        let mut stream = TcpStream::connect("192.0.2.7:80").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });

    assert!(!answer.trim().is_empty());
    container.end();
}

/// containerd's CNI set-up, as an administrator would make it. Gone when dropped.
struct Cni;

impl Cni {
    fn set_up() -> Self {
        fs::create_dir_all("/etc/cni/net.d").expect("set CNI up");
        fs::create_dir_all("/opt/cni").expect("set CNI up");
        std::os::unix::fs::symlink("/usr/lib/cni", "/opt/cni/bin").expect("set CNI up");
        let network = r#"{ "cniVersion": "0.4.0", "name": "hull", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
              "ipam": { "type": "host-local", "subnet": "198.51.100.0/24",
                        "routes": [ { "dst": "0.0.0.0/0" } ] } } ] }"#;
        fs::write("/etc/cni/net.d/10-hull.conflist", network).expect("set CNI up");
        Self
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all("/etc/cni/net.d");
        let _ = fs::remove_file("/opt/cni/bin");
        let _ = command("ip", &["link", "del", "cni0"], b"");
        let _ = command("umount", &["/run/netns"], b"");
    }
}

#[test]
fn a_container_has_the_network_that_cni_made_for_it() {
    let host = Host::take();
    let _cni = Cni::set_up();

    let script = "ip addr show eth0; ping -c 1 -W 10 198.51.100.1";
    let run = host
        .container("cni")
        .options(&["--cni"])
        .run(&["sh", "-c", script]);

    let said = run.output();
    for expected in ["inet 198.51.100.", "1 packets received"] {
        assert!(said.contains(expected), "no {expected:?} in: {said}");
    }
}
