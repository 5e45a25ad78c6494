//! Containers that share namespaces share a machine.

use std::fs;

use hull_tests::wait::until;
use hull_tests::{Container, Finished, Host, Process, command};

fn machines() -> usize {
    let pids = command("pidof", &["hull-vmm"], b"");
    pids.stdout.split_whitespace().count()
}

#[test]
fn containers_that_share_a_network_reach_each_other_on_the_loopback_device() {
    let host = Host::take();
    let web = "mkdir /www && echo tide > /www/index.html && exec httpd -f -p 127.0.0.1:80 -h /www";
    let server = host.container("server").start(&["sh", "-c", web]);

    let script =
        "until wget -qO- http://127.0.0.1/; do sleep 1; done; hostname; echo mine > /tmp/file";
    let client = host.container("client").joining(&server, &["network"]);
    let ran = client.run(&["sh", "-c", script]);

    assert_eq!(ran.status, 0, "{ran:#?}");
    assert!(ran.stdout.starts_with("tide\n"), "{ran:#?}");
    assert_eq!(machines(), 1);
    assert_ne!(server.exec("look", &["ls", "/tmp/file"]).status, 0);
    server.end();
}

#[test]
fn a_container_sees_the_processes_and_memory_of_the_one_that_it_joins() {
    let host = Host::take();
    let script = "ipcmk -M 64 >/dev/null 2>&1; exec sleep 1234";
    let first = host.container("first").start(&["sh", "-c", script]);
    let second = host
        .container("second")
        .joining(&first, &["pid", "ipc", "uts", "network"]);
    let second = second.start(&["sh", "-c", "exec sleep 2345"]);
    let stranger = host.container("stranger").start(&["sleep", "3456"]);

    let processes = second.exec("ps", &["ps", "-o", "pid,args"]);
    let lines: Vec<&str> = processes.stdout.lines().map(str::trim).collect();
    assert!(lines.contains(&"1 sleep 1234"), "{processes:#?}");
    assert!(processes.stdout.contains("sleep 2345"), "{processes:#?}");
    assert!(!processes.stdout.contains("sleep 3456"), "{processes:#?}");
    for kind in ["pid", "ipc", "uts", "net"] {
        let link = format!("/proc/self/ns/{kind}");
        let theirs = first.exec("their", &["readlink", &link]);
        let ours = second.exec("our", &["readlink", &link]);
        assert_eq!(theirs.output(), ours.output());
    }
    let (theirs, ours) = (first.pid(), second.pid());
    assert_ne!(theirs, ours, "each has a pid of its own");
    let network = |pid| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network(theirs), network(ours));
    assert_eq!(machines(), 2);

    // A pid namespace ends with its first process, as with runc.
    first.kill("SIGKILL");
    first.wait_until_stopped();
    second.wait_until_stopped();
    assert_eq!(first.remove(), 137);
    assert_eq!(second.remove(), 137);
    stranger.end();
}

#[test]
fn the_machine_stays_for_those_that_are_left_in_it() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let second = host.container("second").joining(&first, &["network"]);
    let second = second.start(&["sleep", "1000"]);

    assert_eq!(first.end(), 137);
    assert_eq!(second.exec("still", &["echo", "here"]).output(), "here");
    second.kill("SIGTERM");
    second.end();
    assert_eq!(machines(), 0);
}

#[test]
fn a_volume_of_two_containers_of_one_machine_is_one_file_system_and_outlives_each_of_them() {
    let host = Host::take();
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().display();
    let mount = format!("type=bind,src={source},dst=/data,options=rbind:rw");
    let first = host
        .container("first")
        .options(&["--mount", &mount])
        .start(&["sleep", "1000"]);
    let second = host
        .container("second")
        .options(&["--mount", &mount])
        .joining(&first, &["network"])
        .start(&["sleep", "1000"]);
    let ok = |ran: Finished| assert_eq!(ran.status, 0, "{ran:#?}");
    ok(second.exec(
        "make",
        &["sh", "-c", "mkfifo /data/pipe && echo tide > /data/word"],
    ));

    // The kernel's locks, pipes and sockets are an inode's, so that has to be the same one.
    let identity = ["stat", "-c", "%d %i", "/data/word"];
    let theirs = first.exec("stat", &identity);
    assert_eq!(theirs.output(), second.exec("stat", &identity).output());
    let output = directory.path().join("read");
    first.exec_detached("read", &output, &["cat", "/data/pipe"]);
    ok(second.exec("write", &["sh", "-c", "echo through > /data/pipe"]));
    until("the word has come through", || {
        let said = fs::read_to_string(&output).ok()?;
        (said == "through\n").then_some(())
    });

    first.end();
    ok(second.exec("more", &["sh", "-c", "echo more >> /data/word"]));
    second.end();
    let word = fs::read_to_string(directory.path().join("word")).unwrap();
    assert_eq!(word, "tide\nmore\n");
}

#[test]
fn a_volume_that_a_joining_container_may_only_read_is_read_only_on_the_host_too() {
    let host = Host::take();
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().display();
    let mount = format!("type=bind,src={source},dst=/data,options=rbind:ro");
    let first = host.container("first").start(&["sleep", "1000"]);
    let second = host
        .container("second")
        .options(&["--mount", &mount])
        .joining(&first, &["network"])
        .start(&["sleep", "1000"]);

    // What the file-system daemon may do is what a guest that has taken over its kernel may.
    let noted = fs::read_to_string("/run/hull/default/first/processes").unwrap();
    let daemon = noted.lines().nth(1).and_then(|line| line.split(' ').next());
    let daemon = Process::of(daemon.unwrap()).children().pop().unwrap();
    let mounts = daemon.read("mountinfo");
    let volume = mounts.lines().find(|line| line.contains(" /volumes/0 "));
    let options = volume.and_then(|line| line.split(' ').nth(5));
    assert!(options.unwrap().starts_with("ro"), "{mounts}");
    let refused = second.exec("write", &["touch", "/data/word"]);
    assert!(refused.stderr.contains("Read-only"), "{refused:#?}");

    first.end();
    second.end();
}

#[test]
fn the_first_container_comes_back_while_others_are_in_its_machine() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let second = host.container("second").joining(&first, &["network"]);
    let second = second.start(&["sleep", "1000"]);
    first.end();

    for _ in 0..2 {
        let again = host.container("first").start(&["sleep", "1000"]);
        assert_eq!(machines(), 1);
        assert_eq!(again.exec("look", &["echo", "back"]).output(), "back");
        let network = |container: &Container<'_>| {
            let link = container.exec("net", &["readlink", "/proc/self/ns/net"]);
            link.output().to_owned()
        };
        assert_ne!(network(&again), network(&second), "it is a new one");
        assert_eq!(again.end(), 137);
    }
    let refused = host.container("first").run(&["/no/such/program"]);
    assert_ne!(refused.status, 0, "{refused:#?}");
    let _ = host.ctr(&["container", "rm", "first"]);
    let last = host.container("first").start(&["sleep", "1000"]);
    second.end();
    assert_eq!(last.exec("still", &["echo", "here"]).output(), "here");
    last.end();
    assert_eq!(machines(), 0);
}

#[test]
fn the_first_container_comes_back_where_others_have_stopped_and_are_not_deleted() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let second = host.container("second").joining(&first, &["network"]);
    let second = second.start(&["sleep", "1000"]);
    for container in [&first, &second] {
        container.kill("SIGKILL");
        container.wait_until_stopped();
    }
    assert_eq!(machines(), 0);
    first.remove();

    let again = host.container("first").start(&["sleep", "1000"]);
    second.remove();

    assert_eq!(again.exec("look", &["echo", "back"]).output(), "back");
    let third = host.container("third").joining(&again, &["network"]);
    let third = third.start(&["sleep", "1000"]);
    assert_eq!(machines(), 1);
    assert_eq!(third.end(), 137);
    assert_eq!(again.end(), 137);
}

#[test]
fn a_killed_shim_takes_those_along_that_have_joined() {
    let host = Host::take();
    let first = host.container("first").start(&["sleep", "1000"]);
    let second = host.container("second").joining(&first, &["network"]);
    let second = second.start(&["sleep", "1000"]);
    first.end();

    let killed = command("pkill", &["-KILL", "-f", "hull-v2.*-id first"], b"");
    assert_eq!(killed.status, 0, "{killed:#?}");

    second.wait_until_given_up();
    assert_eq!(host.ctr(&["container", "rm", "second"]).status, 0);
}

#[test]
fn a_namespace_that_is_no_containers_of_ours_is_refused_by_its_field() {
    let host = Host::take();
    let ran = host
        .container("lost")
        .options(&["--with-ns=ipc:/proc/1/ns/ipc"])
        .run(&["true"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(
        ran.stderr.contains("linux.namespaces[ipc].path"),
        "{ran:#?}"
    );
}
