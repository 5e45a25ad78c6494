//! What holds the processes of a machine, looked at from the host (docs/security.md).

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::MetadataExt;

use hull_tests::{AttachedTrace, Bundle, Host, Machine, Process, Tap, Trace, command, wait};
use serde_json::json;
use vmm_control::{Event, Request};

#[test]
fn a_running_machine_can_do_nothing_on_its_host() {
    let host = Host::take();
    let container = host.container("jailed").start(&["sleep", "1000"]);
    let vmm = container.vmm();

    // A user that the host does not know, and no other group.
    let uid = vmm.status("Uid");
    let uids: BTreeSet<&str> = uid.split_whitespace().collect();
    let [uid] = uids.into_iter().collect::<Vec<_>>()[..] else {
        panic!("several users: {uid}")
    };
    assert!(
        (2_000_000_000..2_000_065_536).contains(&uid.parse().unwrap()),
        "{uid}"
    );
    assert_eq!(vmm.status("Groups"), "");
    let noted = fs::read_to_string("/run/hull/default/jailed/user").unwrap();
    assert_eq!(noted.trim(), uid);
    let map: Vec<String> = vmm
        .read("uid_map")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(map, [uid, uid, "1"]);

    // No rights, and no way to any.
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(vmm.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(vmm.status("NoNewPrivs"), "1");
    let filters = vmm.of_each_thread("Seccomp");
    assert!(filters.len() >= 2, "{filters:?}");
    assert!(filters.values().all(|mode| mode == "2"), "{filters:?}");

    // Nothing of the host in sight.
    let own = Process::of("self");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        assert_ne!(vmm.namespace(kind), own.namespace(kind), "{kind}");
    }
    assert_eq!(vmm.status("NSpid").split_whitespace().last(), Some("1"));
    let mounts = vmm.read("mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(vmm.root(), Vec::<String>::new());

    // Limits; no memory of the guest's in a dump.
    assert_eq!(vmm.limits("Max core file size"), ["0", "0"]);
    assert_eq!(vmm.limits("Max processes"), ["334", "334"]);
    assert_eq!(vmm.limits("Max open files"), ["4096", "4096"]);
    let owner = fs::metadata(vmm.path("maps")).unwrap().uid();
    assert_eq!(
        owner, 0,
        "a process that may not be dumped is root's in /proc"
    );
    container.end();
}

#[test]
fn the_file_system_daemon_sees_the_shared_folder_alone() {
    let host = Host::take();
    let container = host.container("confined").start(&["sleep", "1000"]);
    let processes = fs::read_to_string("/run/hull/default/confined/processes").unwrap();
    let line = processes.lines().nth(1).unwrap();
    let parent = Process::of(line.split(' ').next().unwrap());
    assert_eq!(parent.status("Name"), "virtiofsd");
    let daemon = parent.children().pop().unwrap();

    let own = Process::of("self");
    for kind in ["mnt", "pid", "net", "ipc", "uts"] {
        assert_ne!(daemon.namespace(kind), own.namespace(kind), "{kind}");
    }
    assert_eq!(daemon.root(), ["roots"]);
    // What the shim makes there is nobody else's to change; what is mounted there may be.
    for (path, allowed) in [("", false), ("roots", false), ("roots/confined", true)] {
        let made = fs::create_dir(daemon.path("root").join(path).join("made"));
        assert_eq!(made.is_ok(), allowed, "{path:?}: {made:?}");
    }
    assert_eq!(daemon.status("NoNewPrivs"), "1");
    let filters = daemon.of_each_thread("Seccomp");
    assert!(filters.values().all(|mode| mode == "2"), "{filters:?}");
    assert_eq!(daemon.limits("Max core file size"), ["0", "0"]);
    assert_eq!(daemon.read("coredump_filter").trim(), "00000000");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP: a container's files have
    // any owner and mode.
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(daemon.status(set), "00000000880000db", "{set}");
    }

    container.end();
}

#[test]
fn the_host_may_end_a_machine_as_soon_as_what_runs_in_it() {
    let host = Host::take();
    let containerd = command("pidof", &["containerd"], b"");
    let engines = Process::of(containerd.output()).path("oom_score_adj");
    let before = fs::read_to_string(&engines).unwrap();
    // As its unit has it.
    fs::write(&engines, "-999").unwrap();
    let bundle = Bundle::new(&host);
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["sleep", "1000"]);
    let scores = || -> BTreeSet<String> {
        let processes = fs::read_to_string("/run/hull/default/hungry/processes").unwrap();
        let pids = processes.lines().take(3).map(|line| line.split(' ').next());
        let score = |pid: Option<&str>| Process::of(pid.unwrap()).read("oom_score_adj");
        // hull-vmm, virtiofsd, the first stand-in.
        pids.map(|pid| score(pid).trim().to_owned()).collect()
    };
    for (asked, expected) in [(None, "0"), (Some(-500), "-500")] {
        spec["process"]["oomScoreAdj"] = json!(asked);
        let container = bundle.container(&host, "hungry", &spec).start(&[]);
        assert_eq!(scores(), BTreeSet::from([expected.to_owned()]));
        if asked.is_some() {
            let other = Bundle::new(&host);
            let network = format!("/proc/{}/ns/net", container.pid());
            spec["process"]["oomScoreAdj"] = json!(700);
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(json!({ "type": "network", "path": network }));
            let joined = other.container(&host, "hungrier", &spec).start(&[]);
            assert_eq!(scores(), BTreeSet::from(["700".to_owned()]));
            joined.end();
        }
        container.end();
    }
    fs::write(&engines, before.trim()).unwrap();
}

#[test]
fn two_machines_are_two_users() {
    let host = Host::take();
    let one = host.container("one").start(&["sleep", "1000"]);
    let two = host.container("two").start(&["sleep", "1000"]);

    let user = |container: &hull_tests::Container<'_>| container.vmm().status("Uid");
    assert_ne!(user(&one), user(&two));

    one.end();
    two.end();
}

#[test]
fn no_guest_runs_without_a_jail_unless_it_is_asked_for_by_name() {
    let _host = Host::take();

    let vmm = hull_tests::command::<&str>("/usr/lib/hull/hull-vmm", &[], b"");
    assert_eq!(vmm.status, 1, "{vmm:?}");
    assert!(vmm.stderr.contains("--unjailed"), "{vmm:?}");

    // With a user, but in the pid namespace of all: the rest of a jail was not made.
    let vmm = hull_tests::command("/usr/lib/hull/hull-vmm", &["--uid", "2100000000"], b"");
    assert_eq!(vmm.status, 1, "{vmm:?}");
    assert!(vmm.stderr.contains("pid namespace"), "{vmm:?}");
}

#[test]
fn a_machine_that_its_filter_stops_ends_and_the_log_says_so() {
    let host = Host::take();
    let container = host.container("caught").start(&["sleep", "1000"]);
    let vmm = container.vmm();

    // Whoever gets the signal of a filter goes on to execute a program (vmm/src/jail/seccomp.rs):
    // a call that no list has. Which call it was is told, too; the unit tests look at that.
    let sent = hull_tests::command("kill", &["-SYS", vmm.pid()], b"");
    assert_eq!(sent.status, 0, "{sent:?}");

    container.wait_until_stopped();
    assert_eq!(container.remove(), 137);
    let log = fs::read_to_string("/var/log/containerd.log").unwrap();
    let said = "hull-vmm ended: stopped by its system-call filter, signal: 31 (SIGSYS)";
    assert!(log.contains(said), "{log}");
}

/// The calls of a list that an ordinary machine of this architecture makes, as the list says.
fn ordinary(list: &str) -> BTreeSet<String> {
    list.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('#'))
        .filter(|(_, reason)| !reason.trim().starts_with("(rare)"))
        .filter_map(|(rule, _)| {
            let mut words = rule.split_whitespace();
            match words.next()? {
                own if own == ARCH => words.next(),
                "x86_64" | "aarch64" => None,
                call => Some(call),
            }
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_call_that_is_listed_is_made() {
    let host = Host::take();
    let trace = Trace::new();
    let program = trace.program();

    // A machine alone: a disk that is written, a console, and the shim's word that ends it.
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let script =
        "head -c 64 /dev/hwrng >/dev/null; dd if=/dev/zero of=/dev/vda bs=4k count=8 conv=fsync
        echo ready; sleep 1000";
    let machine = Machine::with_script(script).program(program.to_str().unwrap());
    let vm = machine.disk(&disk, false, "").boot();
    assert_eq!(vm.event(), Some(Event::Started));
    vm.wait_for("ready");
    vm.request(&Request::Stop);
    let _ = vm.finish();

    // A container: image, share, sockets, and a network card with a cable.
    let _hidden = host.hide("/etc/hull/config.toml");
    let config = format!("vmm = \"{}\"\nvcpus = 1\n", program.display());
    fs::write("/etc/hull/config.toml", config).unwrap();
    let namespace = hull_tests::command("sh", &["-c", CABLE], b"");
    assert_eq!(namespace.status, 0, "{namespace:?}");
    let run = host
        .container("traced")
        .options(&["--with-ns", "network:/run/netns/traced"])
        .run(&[
            "sh",
            "-c",
            "ping -c 1 -w 20 192.0.2.1 && head -c 1000000 /dev/zero | wc -c",
        ]);
    let gone = hull_tests::command(
        "sh",
        &["-c", "ip netns del traced && umount /run/netns"],
        b"",
    );
    assert_eq!(gone.status, 0, "{gone:?}");
    fs::remove_file("/etc/hull/config.toml").unwrap();
    assert!(run.stdout.contains("1000000"), "{run:?}");

    let mut idle = BTreeMap::new();
    let lists = [
        (
            Some("vcpu"),
            "munmap",
            include_str!("../../vmm/src/jail/vcpu.filter"),
        ),
        (
            None,
            "exit_group",
            include_str!("../../vmm/src/jail/event_loop.filter"),
        ),
        (
            Some("disk"),
            "fdatasync",
            include_str!("../../vmm/src/jail/disk.filter"),
        ),
    ];
    for (name, late, list) in lists {
        let made = wait::until("strace has written all", || {
            let made = trace.calls(name);
            made.contains(late).then_some(made)
        });
        println!("{name:?}: {made:?}");
        let listed = ordinary(list);
        assert!(listed.len() >= 5, "{listed:?}");
        let never: Vec<String> = listed.difference(&made).cloned().collect();
        if !never.is_empty() {
            idle.insert(name, never);
        }
    }
    assert!(idle.is_empty(), "listed, but not made: {idle:?}");
}

/// Of a machine that runs: two processors take too long to start when each call of theirs is traced.
#[test]
fn every_call_that_is_listed_for_a_cards_thread_is_made() {
    let _host = Host::take();
    let tap = Tap::with_queues("hulltest0", "192.0.2.1/24", 2);
    let script = "ip address add 192.0.2.2/24 dev eth0; ip link set eth0 up; echo ready
        while :; do taskset 2 ping -c 1 -W 1 192.0.2.1 >/dev/null; done";
    let machine = Machine::with_script(script).size(2, 256);
    let vm = (machine.nic(tap, "02:00:00:00:00:07".parse().unwrap())).boot();
    vm.wait_for("ready");

    let trace = AttachedTrace::of(&Process::of(&vm.pid().to_string()), "card 2");
    let listed = ordinary(include_str!("../../vmm/src/jail/card.filter"));
    assert!(listed.len() >= 3, "{listed:?}");
    wait::until("the card's thread has made every call", || {
        let made = trace.calls();
        println!("{made:?}");
        made.is_superset(&listed).then_some(())
    });
}

/// A network namespace with an interface that leads to the host's 192.0.2.1.
const CABLE: &str =
    "ip netns add traced && ip link add traced0 type veth peer name eth0 netns traced &&
    ip address add 192.0.2.1/24 dev traced0 && ip link set traced0 up &&
    ip netns exec traced ip address add 192.0.2.2/24 dev eth0 &&
    ip netns exec traced ip link set eth0 up";
