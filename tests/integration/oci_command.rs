//! `hull oci`, called as programs call runc: a container's life by hand, and Podman's.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use hull_tests::{Bundle, Finished, Host, Running, command, wait};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

fn oci(args: &[&str]) -> Finished {
    command("hull-oci", args, b"")
}

/// A bundle for the container `tide`, which is gone when this is, even if the test has failed.
struct Tide(Bundle);

impl Deref for Tide {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.0
    }
}

impl Drop for Tide {
    fn drop(&mut self) {
        let _ = oci(&["delete", "--force", "tide"]);
    }
}

/// A bundle whose container runs `script`.
fn bundle(host: &Host, script: &str) -> Tide {
    bundle_with(host, script, |_| ())
}

/// The same, with a specification that `change` has been at.
fn bundle_with(host: &Host, script: &str, change: impl FnOnce(&mut Value)) -> Tide {
    let bundle = Bundle::new(host);
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["sh", "-c", script]);
    change(&mut spec);
    bundle.write(&spec);
    Tide(bundle)
}

/// A command that leaves a container, whose streams are the command's own: they end with the
/// container, so what is said goes to a file.
#[track_caller]
fn leaving(bundle: &Bundle, args: &[&str]) {
    let said = bundle.path("said");
    let file = File::create(&said).expect("the bundle is ours");
    let again = file.try_clone().expect("a descriptor is left");
    let mut oci = std::process::Command::new("hull-oci");
    oci.args(args)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(again);
    let status = oci.status().expect("hull-oci is there");
    let said = fs::read_to_string(&said).expect("it was just made");
    assert!(status.success(), "{args:?}: {said}");
}

/// The command line of `verb` with the bundle.
fn with<'a>(bundle: &'a str, verb: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&[verb, "--bundle", bundle], rest].concat()
}

fn path(bundle: &Bundle, name: &str) -> String {
    bundle.path(name).display().to_string()
}

fn state(id: &str) -> Value {
    let state = oci(&["state", id]);
    serde_json::from_str(state.output()).expect("a state is JSON")
}

fn wait_until_stopped(id: &str) {
    wait::until("the container stops", || {
        (state(id)["status"] == "stopped").then_some(())
    });
}

/// What comes of removing a container, which nobody may have seen.
#[track_caller]
fn delete(id: &str) {
    let deleted = oci(&["delete", "--force", id]);
    assert_eq!(deleted.status, 0, "{deleted:#?}");
}

#[test]
fn run_has_the_programs_streams_and_exit_status() {
    let host = Host::take();
    let bundle = bundle(&host, "cat; uname -r; echo low >&2; exit 7");
    let ran = command(
        "hull-oci",
        &with(&path(&bundle, ""), "run", &["tide"]),
        b"high\n",
    );

    assert_eq!((ran.status, ran.stderr.as_str()), (7, "low\n"), "{ran:#?}");
    let (first, kernel) = ran.stdout.split_once('\n').unwrap();
    assert_eq!(first, "high");
    assert_ne!(kernel.trim(), host.kernel_release());
    assert_ne!(oci(&["state", "tide"]).status, 0, "it is gone");
}

#[test]
fn a_container_is_created_started_looked_at_killed_and_deleted() {
    let host = Host::take();
    let script = "trap 'exit 3' TERM; while :; do sleep 1; done";
    let groups = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" });
    let bundle = bundle_with(&host, script, |spec| {
        let mounts = spec["mounts"].as_array_mut();
        mounts.expect("it has mounts").push(groups);
    });
    let (directory, pid_file) = (path(&bundle, ""), path(&bundle, "pid"));
    let create = with(&directory, "create", &["--pid-file", &pid_file, "tide"]);
    leaving(&bundle, &create);
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let made = state("tide");
    assert_eq!(
        (&made["status"], &made["pid"]),
        (&json!("created"), &json!(pid))
    );
    assert_eq!(made["rootfs"], json!(bundle.path("rootfs")));

    assert_eq!(oci(&["start", "tide"]).status, 0);
    assert_eq!(state("tide")["status"], "running");
    let again = oci(&["start", "tide"]);
    assert!(again.stderr.contains("already running"), "{again:#?}");
    let existing = oci(&with(&directory, "create", &["tide"]));
    assert!(
        existing
            .stderr
            .contains("container with given ID already exists")
    );

    let inside = oci(&[
        "exec",
        "--env",
        "SEA=north",
        "--cwd",
        "/tmp",
        "tide",
        "sh",
        "-c",
        "pwd; echo $SEA; exit 5",
    ]);
    assert_eq!(
        (inside.status, inside.stdout.as_str()),
        (5, "/tmp\nnorth\n"),
        "{inside:#?}"
    );
    let missing = oci(&["exec", "tide", "/no/such/program"]);
    assert_eq!(missing.status, 255, "{missing:#?}");
    let listed = oci(&["list", "--format", "json"]);
    let listed: Value = serde_json::from_str(listed.output()).unwrap();
    assert_eq!(listed[0]["id"], "tide");
    let pids = oci(&["ps", "--format", "json", "tide"]);
    let pids: Vec<u32> = serde_json::from_str(pids.output()).unwrap();
    assert!(pids.contains(&pid), "{pids:?}");
    assert_eq!(oci(&["pause", "tide"]).status, 0);
    assert_eq!(state("tide")["status"], "paused");
    assert_eq!(oci(&["resume", "tide"]).status, 0);
    let limits = command(
        "hull-oci",
        &["update", "--resources=-", "tide"],
        br#"{"pids":{"limit":77}}"#,
    );
    assert_eq!(limits.status, 0, "{limits:#?}");
    let read = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/pids.max";
    let limit = oci(&["exec", "tide", "sh", "-c", read]);
    assert_eq!(limit.output(), "77");

    let running = oci(&["delete", "tide"]);
    assert!(
        running.stderr.contains("that is not stopped: running"),
        "{running:#?}"
    );
    assert_eq!(oci(&["kill", "tide", "TERM"]).status, 0);
    wait_until_stopped("tide");
    assert_eq!(state("tide")["pid"], 0);
    let killed = oci(&["kill", "tide", "9"]);
    assert!(
        killed.stderr.contains("container not running"),
        "{killed:#?}"
    );
    let deleted = oci(&["delete", "tide"]);
    assert_eq!(deleted.status, 0, "{deleted:#?}");
    assert!(
        oci(&["delete", "tide"])
            .stderr
            .contains("container does not exist")
    );
    assert_eq!(oci(&["delete", "--force", "tide"]).status, 0);
}

/// conmon waits for the pid that it is told, as its subreaper.
#[test]
fn the_pid_is_a_child_of_the_callers_subreaper_and_ends_as_the_container_does() {
    let host = Host::take();
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let bundle = bundle(&host, "cat /proc/self/cgroup >/dev/null; read line; exit 9");
    let (directory, pid_file) = (path(&bundle, ""), path(&bundle, "pid"));
    let (input, mut typed) = std::io::pipe().unwrap();
    let mut create = std::process::Command::new("hull-oci");
    create
        .args(with(
            &directory,
            "create",
            &["--pid-file", &pid_file, "tide"],
        ))
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    drop(create);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    assert_ne!(network(&pid.to_string()), network("self"));
    assert_eq!(oci(&["start", "tide"]).status, 0);

    let exec_pid = path(&bundle, "exec-pid");
    let process = bundle.path("process.json");
    let exec = json!({ "cwd": "/", "args": ["sh", "-c", "exit 4"], "env": ["PATH=/bin"],
                       "user": { "uid": 0, "gid": 0 } });
    fs::write(&process, exec.to_string()).unwrap();
    let process = process.display().to_string();
    let started = oci(&[
        "exec",
        "--pid-file",
        &exec_pid,
        "--process",
        &process,
        "--detach",
        "tide",
    ]);
    assert_eq!(started.status, 0, "{started:#?}");
    let exec_pid: i32 = fs::read_to_string(&exec_pid).unwrap().parse().unwrap();
    let ended = |pid| waitpid(Pid::from_raw(pid), None).unwrap();
    assert_eq!(
        ended(exec_pid),
        WaitStatus::Exited(Pid::from_raw(exec_pid), 4)
    );

    typed.write_all(b"go\n").unwrap();
    assert_eq!(ended(pid), WaitStatus::Exited(Pid::from_raw(pid), 9));
    delete("tide");
    // The shim has become a child, too.
    while waitpid(None, None).is_ok() {}
    nix::sys::prctl::set_child_subreaper(false).unwrap();
}

#[test]
fn what_kills_the_pid_kills_the_container() {
    let host = Host::take();
    let bundle = bundle(&host, "exec sleep 1000");
    let (directory, pid_file) = (path(&bundle, ""), path(&bundle, "pid"));
    let run = ["--detach", "--pid-file", &pid_file, "tide"];
    leaving(&bundle, &with(&directory, "run", &run));

    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(command("kill", &["-KILL", &pid], b"").status, 0);

    wait_until_stopped("tide");
    delete("tide");
}

#[test]
fn a_killed_run_leaves_nothing() {
    let host = Host::take();
    let bundle = bundle(&host, "echo begun; exec sleep 1000");
    let (directory, output) = (path(&bundle, ""), bundle.path("output"));
    let mut run = std::process::Command::new("hull-oci");
    run.args(with(&directory, "run", &["--keep", "tide"]));
    let running = Running::start(&mut run, File::create(&output).unwrap().into());
    wait::until("the container says something", || {
        (fs::read_to_string(&output).unwrap() == "begun\n").then_some(())
    });

    drop(running);

    wait::until("the container is gone", || {
        (oci(&["state", "tide"]).status != 0).then_some(())
    });
}

#[test]
fn a_run_that_is_killed_while_it_creates_leaves_nothing() {
    let host = Host::take();
    let bundle = bundle(&host, "exec sleep 1000");
    let directory = path(&bundle, "");
    let mut run = std::process::Command::new("hull-oci");
    run.args(with(&directory, "run", &["tide"]));
    let running = Running::start(&mut run, Stdio::null());
    let machine = || command("pidof", &["hull-vmm"], b"").status == 0;
    wait::until("its machine boots", || machine().then_some(()));

    drop(running);

    wait::until("all of it is gone", || {
        let is_known =
            oci(&["state", "tide"]).status == 0 || Path::new("/run/hull-oci/tide").exists();
        (!is_known && !machine()).then_some(())
    });
    assert!(!Path::new("/run/hull/oci/tide").exists());
    // Its name is free.
    leaving(&bundle, &with(&directory, "run", &["--detach", "tide"]));
    assert_eq!(oci(&["state", "tide"]).status, 0);
}

#[test]
fn a_terminal_is_sent_to_the_console_socket_and_has_its_size() {
    let host = Host::take();
    let script = "read line; stty size; tty; echo \"got $line\"; exit 6";
    let bundle = bundle_with(&host, script, |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    let directory = path(&bundle, "");
    let alone = oci(&with(&directory, "create", &["tide"]));
    assert!(alone.stderr.contains("console socket"), "{alone:#?}");

    let socket = path(&bundle, "console");
    let listener = UnixListener::bind(&socket).unwrap();
    let created = oci(&with(
        &directory,
        "create",
        &["--console-socket", &socket, "tide"],
    ));
    assert_eq!(created.status, 0, "{created:#?}");
    let mut master = master(&listener);
    let size = rustix::termios::Winsize {
        ws_row: 33,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    assert_eq!(oci(&["start", "tide"]).status, 0);
    master.write_all(b"tide\n").unwrap();
    let mut said = String::new();
    let mut chunk = [0; 1024];
    // The last read of a terminal that nobody has open any more is an error.
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        said.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
    assert!(said.contains("33 99\r\n/dev/"), "{said}");
    assert!(said.contains("got tide\r\n"), "{said}");
    wait_until_stopped("tide");
    delete("tide");
}

/// What was sent to a console socket.
fn master(listener: &UnixListener) -> File {
    let (stream, _) = listener.accept().expect("somebody connects");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut parts = [IoSliceMut::new(&mut name)];
    let received = recvmsg(&stream, &mut parts, &mut control, RecvFlags::empty());
    received.expect("something is sent");
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut sent) = message {
            return sent.next().expect("one is sent").into();
        }
    }
    panic!("no terminal was sent");
}

#[test]
fn what_is_wrong_is_said_as_runc_says_it_and_leaves_nothing() {
    let host = Host::take();
    let bundle = bundle(&host, "true");
    let (directory, log) = (path(&bundle, ""), path(&bundle, "log"));
    let unknown = oci(&["--log", &log, "--log-format", "json", "state", "ebb"]);
    assert_eq!(
        (unknown.status, unknown.stderr.as_str()),
        (1, "container does not exist\n")
    );
    let entry: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&entry["level"], &entry["msg"]),
        (&json!("error"), &json!("container does not exist"))
    );
    for args in [
        &["kill", "ebb"][..],
        &["start", "ebb"],
        &["exec", "ebb", "true"],
        &["delete", "ebb"],
    ] {
        let refused = oci(args);
        assert!(
            refused.stderr.contains("container does not exist"),
            "{refused:#?}"
        );
    }
    let named = oci(&with(&directory, "run", &["a/b"]));
    assert!(
        named.stderr.contains("invalid container ID format"),
        "{named:#?}"
    );
    let nowhere = oci(&["run", "--bundle", "/no/such/bundle", "tide"]);
    assert!(nowhere.stderr.contains("/no/such/bundle"), "{nowhere:#?}");

    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["/no/such/program"]);
    bundle.write(&spec);
    let missing = oci(&with(&directory, "run", &["tide"]));
    assert_eq!(missing.status, 1, "{missing:#?}");
    assert!(
        missing.stderr.contains("no such file or directory"),
        "{missing:#?}"
    );
    assert_eq!(oci(&["list", "--quiet"]).stdout, "");
}

/// As BuildKit has it: the root file system is its own mount, and the bundle may be gone at the end.
#[test]
fn what_the_caller_has_mounted_stays_mounted() {
    let host = Host::take();
    let bundle = bundle(&host, "echo tide >/srv/file");
    let (root, directory) = (path(&bundle, "rootfs"), path(&bundle, ""));
    let mount = |args: &[&str]| assert_eq!(command("mount", args, b"").status, 0);
    mount(&["--bind", &root, &root]);
    let ran = oci(&with(&directory, "run", &["--keep", "tide"]));
    assert_eq!(ran.status, 0, "{ran:#?}");
    fs::rename(bundle.path("config.json"), bundle.path("gone")).unwrap();
    delete("tide");

    assert_eq!(command("mountpoint", &["-q", &root], b"").status, 0);
    assert_eq!(command("umount", &[&root], b"").status, 0);
    assert_eq!(
        fs::read_to_string(Path::new(&root).join("srv/file")).unwrap(),
        "tide\n"
    );
}

#[test]
fn podman_runs_a_container() {
    let host = Host::take();
    let directory = tempfile::tempdir_in("/run").unwrap();
    let place = |name: &str| directory.path().join(name).display().to_string();
    let (storage, state) = (place("storage"), place("state"));
    let podman = |args: &[&str]| {
        let options = [
            "--root",
            &storage,
            "--runroot",
            &state,
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
            "--runtime",
            "/usr/bin/hull-oci",
        ];
        command("podman", &[&options[..], args].concat(), b"low\n")
    };
    let archive = host.shared("busybox.tar").display().to_string();
    let loaded = podman(&["load", "--input", &archive]);
    assert_eq!(loaded.status, 0, "{loaded:#?}");

    let script = "cat; uname -r; echo wrong >&2; exit 7";
    let run = [
        "run",
        "--rm",
        "--interactive",
        "--network",
        "none",
        "localhost/hull/busybox",
    ];
    let ran = podman(&[&run[..], &["sh", "-c", script]].concat());

    assert_eq!((ran.status, ran.stderr.trim()), (7, "wrong"), "{ran:#?}");
    let (first, kernel) = ran.stdout.split_once('\n').unwrap();
    assert_eq!(first, "low");
    assert_ne!(kernel.trim(), host.kernel_release());
    let reset = podman(&["system", "reset", "--force"]);
    assert_eq!(reset.status, 0, "{reset:#?}");
    // Podman's own, which it leaves with any runtime.
    for group in ["libpod_parent/conmon", "libpod_parent"] {
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(group));
    }
}
