//! The processes of a container, as the host's `ps` shows them (`docker top`, `ctr task ps`).

use std::collections::BTreeSet;

use hull_tests::{Host, Process, command, wait};

/// The pids that containerd is told.
fn pids(host: &Host, name: &str) -> Vec<String> {
    let listed = host.ctr(&["task", "ps", name]);
    let lines = listed.output().lines().skip(1);
    let pids = lines.filter_map(|line| line.split_whitespace().next());
    pids.map(str::to_owned).collect()
}

/// What `ps` shows of them, without their pids, in order.
fn shown(host: &Host, name: &str, columns: &str) -> Vec<String> {
    let pids = pids(host, name).join(",");
    let ps = command("ps", &["-o", columns, "-ww", "-q", &pids], b"");
    let lines = ps.output().lines().skip(1);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: BTreeSet<String> = lines.map(words).collect();
    lines.into_iter().collect()
}

/// containerd gives up a container without processes when it is started again.
#[test]
fn a_guest_that_hangs_has_its_first_process_all_the_same() {
    let host = Host::take();
    let container = host.container("hung").start(&["sleep", "1000"]);
    let (pid, vmm) = (container.pid().to_string(), container.vmm());
    assert_eq!(pids(&host, "hung"), [&*pid]);

    assert_eq!(command("kill", &["-STOP", vmm.pid()], b"").status, 0);
    assert_eq!(pids(&host, "hung"), [&*pid]);
    assert_eq!(command("kill", &["-CONT", vmm.pid()], b"").status, 0);

    container.end();
}

#[test]
fn ps_shows_the_processes_of_a_container_as_they_are() {
    let host = Host::take();
    let script = "sleep 1001 & \
        su app -c 'exec sleep 1002' & \
        exec sh -c '/bin/true & exec sleep 1003'";
    let container = host.container("shown").start(&["sh", "-c", script]);

    let columns = "euid,egid,comm,args";
    let expected = [
        "0 0 sleep sleep 1001",
        "0 0 sleep sleep 1003",
        "1000 1000 sleep sleep 1002",
    ];
    wait::until("all processes are what they will be", || {
        (shown(&host, "shown", columns) == expected).then_some(())
    });

    // The same processes have the same pids; the init's is the container's.
    let before: BTreeSet<String> = pids(&host, "shown").into_iter().collect();
    assert!(before.contains(&container.pid().to_string()), "{before:?}");
    let after: BTreeSet<String> = pids(&host, "shown").into_iter().collect();
    assert_eq!(before, after);

    container.end();
}

#[test]
fn a_process_that_ends_is_gone_and_so_is_what_stood_for_it() {
    let host = Host::take();
    // A shell becomes what it runs last.
    let script = "sleep 1001 & echo $! >/pid; wait; sleep 1002; true";
    let container = host.container("ended").start(&["sh", "-c", script]);
    let init = format!("sh -c {script}");
    let shown = |name| shown(&host, name, "args");
    wait::until("the first process is there", || {
        (shown("ended") == [&init, "sleep 1001"]).then_some(())
    });
    let before = pids(&host, "ended");

    let killed = container.exec("end", &["sh", "-c", "kill $(cat /pid)"]);
    assert_eq!(killed.status, 0, "{killed:#?}");

    wait::until("the second is there and the first is not", || {
        (shown("ended") == [&init, "sleep 1002"]).then_some(())
    });
    let after = pids(&host, "ended");
    let gone: Vec<&String> = before.iter().filter(|pid| !after.contains(pid)).collect();
    assert_eq!(gone.len(), 1, "{before:?} {after:?}");
    assert!(!Process::of(gone[0]).path("").exists());
    container.end();
}

#[test]
fn an_init_that_has_become_another_user_is_shown_as_that() {
    let host = Host::take();
    let script = "until [ -e /go ]; do sleep 0.1; done; exec su app -c \"exec sleep 1003\"";
    let container = host.container("later").start(&["sh", "-c", script]);
    let before = shown(&host, "later", "euser,args");
    assert!(
        before.contains(&format!("root sh -c {script}")),
        "{before:?}"
    );

    assert_eq!(container.exec("go", &["touch", "/go"]).status, 0);

    wait::until("it is shown as what it is", || {
        (shown(&host, "later", "euid,args") == ["1000 sleep 1003"]).then_some(())
    });
    container.end();
}

#[test]
fn what_stands_for_a_process_has_no_rights_on_the_host() {
    let host = Host::take();
    let script = "su app -c 'exec sleep 1002' & exec sleep 1003";
    let container = host.container("powerless").start(&["sh", "-c", script]);
    wait::until("the processes are there", || {
        let shown = shown(&host, "powerless", "euid,args");
        (shown.len() == 2 && shown[1].starts_with("1000 sleep")).then_some(())
    });

    let init = container.pid().to_string();
    for pid in pids(&host, "powerless") {
        let process = Process::of(&pid);
        // Who is not root cannot signal or trace it: its real and saved user are root.
        let uids = process.status("Uid");
        let [real, effective, saved, _] = uids.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{uids}")
        };
        assert_eq!((real, saved), ("0", "0"));
        assert_eq!(effective == "0", pid == init, "{uids}");
        // SETUID and SETGID, to look otherwise.
        let rights = if pid == init {
            "00000000000000c0"
        } else {
            "0000000000000000"
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(process.status(set), rights, "{set}");
        }
        assert_eq!(process.status("NoNewPrivs"), "1");
        assert_eq!(process.status("Groups"), "");
    }
    container.end();
}

#[test]
fn a_container_with_more_processes_costs_the_host_512() {
    let host = Host::take();
    let script = "n=0; while [ $n -lt 560 ]; do sleep 1000 & n=$((n + 1)); done; echo done; wait";
    let container = host.container("many").start(&["sh", "-c", script]);
    // An emulated machine starts few of them in a second.
    for enough in [100, 200, 300, 400, 500, 550] {
        wait::until("there are more", || {
            let count = container.exec("count", &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"]);
            (count.output().parse::<u32>().ok()? > enough).then_some(())
        });
    }

    // A guest that takes its time to list them is shown as its init.
    let listed = wait::until("they are listed", || {
        let listed = pids(&host, "many");
        (listed.len() > 1).then_some(listed)
    });

    assert_eq!(listed.len(), 512);
    assert!(listed.contains(&container.pid().to_string()));
    let shim = Process::of(&Process::of(&container.pid().to_string()).status("PPid"));
    let children = shim.children().len();
    assert!((512..530).contains(&children), "{children}");
    // What a test leaves is looked for when it ends.
    container.end();
}

#[test]
fn a_container_ends_with_what_stands_for_its_init() {
    let host = Host::take();
    let container = host.container("killed").start(&["sleep", "1000"]);
    assert_eq!(shown(&host, "killed", "args"), ["sleep 1000"]);

    let pid = container.pid().to_string();
    assert_eq!(command("kill", &["-KILL", &pid], b"").status, 0);

    container.wait_until_stopped();
    assert_eq!(container.remove(), 137);
}
