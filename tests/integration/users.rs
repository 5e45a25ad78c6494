//! User namespaces: root of the container is nobody of the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use hull_tests::{Container, Host};

const MAPS: [&str; 4] = ["--uidmap", "0:1000:5000", "--gidmap", "0:2000:5000"];

fn mapped<'a>(host: &'a Host, name: &'a str) -> Container<'a> {
    host.container(name).options(&MAPS)
}

#[test]
fn root_of_a_user_namespace_is_root_in_it_alone() {
    let host = Host::take();
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /bin/busybox";

    let run = mapped(&host, "mapped").run(&["sh", "-c", script]);

    let words: Vec<&str> = run.output().split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "1000", "5000", "0", "2000", "5000", "0:0"],
        "{run:#?}"
    );
}

#[test]
fn streams_terminal_and_exec_work_in_a_user_namespace() {
    let host = Host::take();

    let again = mapped(&host, "again").run(&["sh", "-c", "echo again >/dev/stdout; exit 7"]);
    let terminal = mapped(&host, "terminal").run_on_terminal(&["tty"]);
    let container = mapped(&host, "exec").start(&["sleep", "1000"]);
    let script = "id -u; echo again >/dev/stdout; cat /proc/self/uid_map; cat </proc/1/uid_map";
    let exec = container.exec("e", &["sh", "-c", script]);
    container.end();

    assert_eq!((again.status, again.stdout.as_str()), (7, "again\n"));
    assert!(terminal.output().contains("/dev/pts/0"), "{terminal:#?}");
    let words: Vec<&str> = exec.output().split_whitespace().collect();
    let expected = ["0", "again", "0", "1000", "5000", "0", "1000", "5000"];
    assert_eq!(words, expected, "{exec:#?}");
}

#[test]
fn a_privileged_container_may_have_a_user_namespace() {
    let host = Host::take();
    let script = "id -u; readlink /dev/ptmx; head -c 3 /dev/urandom | wc -c; echo x >/dev/null; \
        grep -c ^CapEff.*1ffffffffff /proc/self/status";

    let privileged = mapped(&host, "privileged").options(&["--privileged"]);
    let run = privileged.run_on_terminal(&["sh", "-c", script]);

    // The terminal shows the end of the input, too.
    let shown = run.output().trim_start_matches("^@");
    let words: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(words, ["0", "pts/ptmx", "3", "1"], "{run:#?}");
}

#[test]
fn files_made_in_a_user_namespace_belong_to_the_mapped_user() {
    let host = Host::take();
    let volume = tempfile::tempdir_in("/run").unwrap();
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(volume.path(), Some(1000), Some(2000)).unwrap();
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        volume.path().display()
    );

    let run = mapped(&host, "volume").options(&["--mount", &mount]).run(&[
        "sh",
        "-c",
        "touch /volume/mine && chown 7:8 /volume/mine && stat -c %u:%g /volume/mine",
    ]);

    assert_eq!(run.output(), "7:8", "{run:#?}");
    let mine = fs::metadata(volume.path().join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (1007, 2008));
}

#[test]
fn an_idmapped_volume_belongs_to_the_containers_root() {
    let host = Host::take();
    let volume = tempfile::tempdir_in("/run").unwrap();
    fs::write(volume.path().join("theirs"), "").unwrap();
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw:idmap",
        volume.path().display()
    );

    let run = mapped(&host, "idmap").options(&["--mount", &mount]).run(&[
        "sh",
        "-c",
        "stat -c %u:%g /volume /volume/theirs; touch /volume/mine; stat -c %u:%g /volume/mine",
    ]);

    assert_eq!(run.output(), "0:0\n0:0\n0:0", "{run:#?}");
    let mine = fs::metadata(volume.path().join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (0, 0));
}

#[test]
fn a_user_namespace_has_a_network_and_a_file_system_of_its_own() {
    let host = Host::take();
    // Port 80 and sysfs belong to who is root of the network namespace.
    let script = "nc -l -p 80 </dev/null & sleep 1; netstat -tln | grep -c :80; ls /sys/class/net; \
        mount -t tmpfs none /tmp 2>&1 | grep -c denied";

    let run = mapped(&host, "network").run(&["sh", "-c", script]);

    assert_eq!(run.output().lines().next(), Some("1"), "{run:#?}");
    assert!(run.output().contains("lo\n"), "{run:#?}");
}
