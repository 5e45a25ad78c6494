//! A container's life: run in the background, look inside, signal, remove.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use hull_tests::{Bundle, Host, wait};
use serde_json::{Value, json};

#[test]
fn a_detached_container_runs_until_it_is_killed_and_removed() {
    let host = Host::take();
    let container = host.container("life").start(&["sleep", "1000"]);

    let listed = container.listed().expect("it is listed");
    assert_eq!(listed[2], "RUNNING");
    assert!(
        Path::new("/proc").join(&listed[1]).exists(),
        "its pid is a process of the host"
    );

    assert_eq!(
        container.exec("hello", &["echo", "hello"]).output(),
        "hello"
    );
    assert_eq!(container.exec("three", &["sh", "-c", "exit 3"]).status, 3);

    assert_eq!(container.end(), 137);
}

#[test]
fn an_exec_has_input_user_and_terminal() {
    let host = Host::take();
    let container = host.container("exec").start(&["sleep", "1000"]);

    let whoami = host.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "who",
        "--user",
        "app",
        "exec",
        "whoami",
    ]);
    assert_eq!(whoami.output(), "app");

    let line = "ctr task exec --tty --exec-id tty exec sh -c 'stty size; tty'";
    let tty = hull_tests::command("script", &["-q", "-e", "-c", line, "/dev/null"], b"");
    assert!(tty.output().contains("/dev/pts/"), "{tty:?}");

    container.end();
}

/// As systemd and dockerd do it in a container.
#[test]
fn an_exec_is_where_init_is_once_the_container_has_given_controllers() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let script = "cd /sys/fs/cgroup && mkdir own && echo 1 >own/cgroup.procs
        until echo +pids >cgroup.subtree_control; do sleep 0.1; done; exec sleep 1000";
    let spec = with_cgroups(&bundle, script);
    let container = bundle.container(&host, "given", &spec).start(&[]);

    let mut number = 0;
    let said = wait::until("the container has given controllers", || {
        number += 1;
        let script = "cat /sys/fs/cgroup/cgroup.subtree_control /proc/self/cgroup";
        let said = container.exec(&format!("look{number}"), &["sh", "-c", script]);
        said.stdout.starts_with("pids").then_some(said)
    });
    assert_eq!(said.output(), "pids\n0::/own");

    assert_eq!(container.end(), 137);
}

/// A configuration whose container sees its own cgroup, and may make others in it.
fn with_cgroups(bundle: &Bundle, script: &str) -> Value {
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["sh", "-c", script]);
    let groups = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" });
    let add = |to: &mut Value, what| to.as_array_mut().expect("it is a list").push(what);
    add(&mut spec["mounts"], groups);
    add(
        &mut spec["linux"]["namespaces"],
        json!({ "type": "cgroup" }),
    );
    spec
}

#[test]
fn a_container_is_killed_however_its_cgroups_are_nested() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    // Twenty of them make a longer path than the kernel takes.
    let script = "cd /sys/fs/cgroup; name=$(head -c 250 /dev/zero | tr '\\0' x); n=0
        while [ $n -lt 20 ]; do mkdir $name && cd -P $name; n=$((n + 1)); done
        sleep 1000 & echo $! >cgroup.procs && touch /tmp/moved; wait";
    let spec = with_cgroups(&bundle, script);
    let container = bundle.container(&host, "nested", &spec).start(&[]);
    let mut number = 0;
    wait::until("the last of them has a process", || {
        number += 1;
        let looked = container.exec(&format!("look{number}"), &["test", "-e", "/tmp/moved"]);
        (looked.status == 0).then_some(())
    });
    let depth = ["cat", "/sys/fs/cgroup/cgroup.max.depth"];
    assert_eq!(container.exec("depth", &depth).output(), "64");

    let killed = host.ctr(&["task", "kill", "--all", "-s", "SIGKILL", "nested"]);

    assert_eq!(killed.status, 0, "{killed:?}");
    container.wait_until_stopped();
    assert_eq!(container.remove(), 137);
}

#[test]
fn init_and_execs_of_a_container_have_one_session_keyring() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let mut spec = bundle.spec();
    spec["linux"]["maskedPaths"] = json!([]);
    let script = "grep -c '_ses.keyring:' /proc/keys";
    let init = format!("{script} >/tmp/seen; sleep 1000");
    spec["process"]["args"] = json!(["sh", "-c", init]);
    let container = bundle.container(&host, "keyring", &spec).start(&[]);

    let seen = wait::until("init has looked", || {
        let seen = container.exec("seen", &["cat", "/tmp/seen"]);
        seen.stdout.ends_with('\n').then_some(seen)
    });
    let exec = container.exec("look", &["sh", "-c", script]);

    // One that the exec had made would be there beside init's.
    assert_eq!((seen.output(), exec.output()), ("1", "1"));
    container.end();
}

#[test]
fn an_exec_does_not_wait_for_a_pipe_in_the_place_of_passwd() {
    let host = Host::take();
    let container = host.container("pipe").start(&["sleep", "1000"]);
    let script = "rm -f /etc/passwd && mkfifo /etc/passwd";
    assert_eq!(container.exec("make", &["sh", "-c", script]).status, 0);

    let home = container.exec("home", &["sh", "-c", "echo $HOME"]);

    assert_eq!(home.output(), "/");
    container.end();
}

#[test]
fn an_exec_that_does_not_get_to_its_program_can_be_killed() {
    let host = Host::take();
    // Whoever comes in is stopped at once, wherever it is.
    let script = "while :; do kill -STOP -1 2>/dev/null; done";
    let container = host.container("stops").start(&["sh", "-c", script]);

    let ended = thread::scope(|scope| {
        let exec = scope.spawn(|| container.exec("stopped", &["sleep", "1000"]));
        let kill = [
            "task",
            "kill",
            "--exec-id",
            "stopped",
            "--signal",
            "SIGKILL",
        ];
        wait::until("there is a process to kill", || {
            (host.ctr(&[&kill[..], &["stops"]].concat()).status == 0).then_some(())
        });
        exec.join().expect("the command is waited for")
    });

    assert_ne!(ended.status, 0, "{ended:?}");
    container.end();
}

/// Each of its steps meets the end in words of its own.
#[test]
fn an_exec_that_its_containers_end_cuts_off_says_so() {
    let host = Host::take();
    let script = "until [ -e /go ]; do sleep 0.1; done";
    let container = host.container("ending").start(&["sh", "-c", script]);
    let until_it_fails = |name: &str| {
        let mut runs = (0..100).map(|n| container.exec(&format!("{name}{n}"), &["true"]));
        // One that runs is killed without a word.
        let failed = runs.find(|run| !matches!(run.status, 0 | 137));
        failed.expect("there is an end to it").stderr
    };

    let failures = thread::scope(|scope| {
        let execs = ["a", "b", "c", "d"].map(|name| scope.spawn(move || until_it_fails(name)));
        assert_eq!(container.exec("go", &["touch", "/go"]).status, 0);
        execs.map(|exec| exec.join().expect("it runs"))
    });

    for failure in failures {
        assert!(failure.contains("not running"), "{failure}");
    }
    container.wait_until_stopped();
    container.remove();
}

#[test]
fn a_signal_reaches_the_command() {
    let host = Host::take();
    let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done";
    let container = host.container("term").start(&["sh", "-c", script]);

    container.kill("SIGTERM");
    container.wait_until_stopped();

    assert_eq!(container.remove(), 42);
}

#[test]
fn processes_and_figures_are_those_of_the_container() {
    let host = Host::take();
    let container = host
        .container("look")
        .options(&["--memory-limit", "67108864"])
        .start(&["sh", "-c", "sleep 1000 & sleep 1000; true"]);

    // Once the shell has started them.
    wait::until("a line for each process, and the title", || {
        let processes = host.ctr(&["task", "ps", "look"]);
        (processes.output().lines().count() == 1 + 3).then_some(())
    });

    let metrics = host.ctr(&["task", "metrics", "--format", "json", "look"]);
    let metrics: serde_json::Value = serde_json::from_str(metrics.output()).unwrap();
    assert_eq!(metrics["pids"]["current"], 3, "{metrics}");
    assert_eq!(metrics["memory"]["usage_limit"], 67_108_864, "{metrics}");
    assert!(metrics["memory"]["usage"].as_u64() > Some(0), "{metrics}");

    container.end();
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let host = Host::take();
    let container = host.container("pause").start(&["sleep", "1000"]);

    assert_eq!(host.ctr(&["task", "pause", "pause"]).status, 0);
    assert_eq!(container.listed().unwrap()[2], "PAUSED");
    assert_eq!(host.ctr(&["task", "resume", "pause"]).status, 0);
    assert_eq!(container.listed().unwrap()[2], "RUNNING");

    container.end();
}

#[test]
fn two_containers_at_once_have_a_kernel_each() {
    let host = Host::take();
    let one = host.container("one").start(&["sleep", "1000"]);
    let two = host.container("two").start(&["sleep", "1000"]);

    let boot = |container: &hull_tests::Container<'_>| {
        container
            .exec("boot", &["cat", "/proc/sys/kernel/random/boot_id"])
            .output()
            .to_owned()
    };
    assert_ne!(boot(&one), boot(&two));

    for container in [one, two] {
        container.end();
    }
}

#[test]
fn a_killed_vmm_stops_its_container_and_leaves_nothing() {
    let host = Host::take();
    let container = host.container("crash").start(&["sleep", "1000"]);

    assert_eq!(
        hull_tests::command("pkill", &["-KILL", "-x", "hull-vmm"], b"").status,
        0
    );

    container.wait_until_stopped();
    container.remove();
}

#[test]
fn a_killed_shim_takes_its_machine_along_and_containerd_cleans_up() {
    let host = Host::take();
    let container = host.container("orphan").start(&["sleep", "1000"]);

    let shims = ["-KILL", "-f", "containerd-shim-hull-v2.*-id orphan"];
    assert_eq!(hull_tests::command("pkill", &shims, b"").status, 0);

    container.wait_until_given_up();
    // containerd has deleted the task; the container is the user's to remove.
    assert_eq!(host.ctr(&["container", "rm", "orphan"]).status, 0);
}

/// As after a crash that containerd did not clean up after: it gives that five seconds, once.
#[test]
fn what_a_killed_shim_has_left_is_in_nobodys_way() {
    let host = Host::take();
    fs::create_dir_all("/run/hull/default/wreck/folders/roots").unwrap();
    fs::write(
        "/run/hull/default/wreck/address",
        "unix:///run/containerd/s/nobody",
    )
    .unwrap();

    let container = host.container("wreck").start(&["sleep", "1000"]);

    assert_eq!(
        container.exec("look", &["echo", "afloat"]).output(),
        "afloat"
    );
    container.end();
    assert!(!Path::new("/run/hull/default").exists());
}

#[test]
fn a_logger_reads_what_a_container_says() {
    let host = Host::take();
    let directory = tempfile::tempdir_in("/run").unwrap();
    let (logger, log) = (
        directory.path().join("logger"),
        directory.path().join("log"),
    );
    let script = "#!/bin/sh\nexec 5>&-\n{ echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1\"; \
        /bin/cat <&3; /bin/cat <&4; } >$2\n";
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?to={}", logger.display(), log.display());

    let container = host
        .container("logged")
        .options(&["--log-uri", &uri])
        .start(&["sh", "-c", "echo high; echo low >&2"]);
    container.wait_until_stopped();
    container.remove();

    let said = fs::read_to_string(log).unwrap();
    assert_eq!(said, "default logged to\nhigh\nlow\n");
}
