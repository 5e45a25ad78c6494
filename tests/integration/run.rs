//! `ctr run --rm`: one command, its output, its exit status.

use std::fs;

use hull_tests::{Host, command};

#[test]
fn a_container_runs_on_a_kernel_of_its_own() {
    let host = Host::take();

    let run = host.container("kernel").run(&["uname", "-r"]);

    assert_ne!(run.output(), host.kernel_release());
    assert!(run.output().contains("hull"), "{run:?}");
}

#[test]
fn true_exits_with_0_and_says_nothing() {
    let host = Host::take();

    let run = host.container("true").run(&["/bin/true"]);

    assert_eq!(
        (run.status, run.stdout.as_str(), run.stderr.as_str()),
        (0, "", "")
    );
}

#[test]
fn the_exit_status_of_the_command_is_that_of_ctr() {
    let host = Host::take();

    let run = host.container("seven").run(&["sh", "-c", "exit 7"]);

    assert_eq!(run.status, 7, "{run:?}");
}

#[test]
fn a_command_that_dies_of_a_signal_exits_with_128_and_its_number() {
    let host = Host::take();

    // An init ignores what it does not handle, so a child has to die.
    let run = host
        .container("signal")
        .run(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);

    assert_eq!(run.status, 137, "{run:?}");
}

#[test]
fn standard_input_arrives_and_its_end_too() {
    let host = Host::take();

    let run = host
        .container("stdin")
        .stdin(b"high tide\nlow tide\n")
        .run(&["wc", "-l"]);

    assert_eq!(run.output(), "2");
}

#[test]
fn standard_output_and_error_stay_apart() {
    let host = Host::take();

    let run = host
        .container("streams")
        .run(&["sh", "-c", "echo out; echo err >&2"]);

    assert_eq!(
        (run.stdout.as_str(), run.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn a_terminal_is_a_terminal() {
    let host = Host::take();

    let script = "test -t 0 && test -t 1 && test -t 2 && tty && echo $((6*7))";
    let run = host.container("tty").run_on_terminal(&["sh", "-c", script]);

    assert_eq!(run.status, 0, "{run:?}");
    assert!(
        run.stdout.contains("/dev/pts/0") && run.stdout.contains("42"),
        "{run:?}"
    );
}

#[test]
fn much_output_arrives_whole_although_the_command_ends_at_once() {
    let host = Host::take();

    let run = host.container("much").run(&["sh", "-c", "seq 1 300000"]);

    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(run.status, 0);
    assert!(
        run.stdout == expected,
        "{} of {} bytes",
        run.stdout.len(),
        expected.len()
    );
}

#[test]
fn user_directory_and_environment_are_as_asked() {
    let host = Host::take();

    let run = host
        .container("user")
        .options(&["--user", "app", "--cwd", "/tmp", "--env", "TIDE=high"])
        .run(&[
            "sh",
            "-c",
            "id -u; id -g; pwd; echo $TIDE; touch new && stat -c %u new",
        ]);

    assert_eq!(run.output(), "1000\n1000\n/tmp\nhigh\n1000");
}

#[test]
fn the_command_is_process_1_of_its_own_pid_namespace() {
    let host = Host::take();

    let run = host
        .container("pid")
        .run(&["sh", "-c", "echo $$; ps -o pid | wc -l"]);

    // The header, the shell, ps and wc.
    assert_eq!(run.output(), "1\n4");
}

#[test]
fn a_read_only_root_refuses_writes() {
    let host = Host::take();

    let run = host
        .container("readonly")
        .options(&["--read-only"])
        .run(&["touch", "/new"]);

    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("Read-only file system"), "{run:?}");
}

#[test]
fn a_directory_of_the_host_is_shared_both_ways() {
    let host = Host::take();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("from-host"), "high").unwrap();

    let mount = format!(
        "type=bind,src={},dst=/mnt,options=rbind:rw",
        directory.path().display()
    );
    let run = host.container("bind").options(&["--mount", &mount]).run(&[
        "sh",
        "-c",
        "cat /mnt/from-host; echo low > /mnt/from-guest",
    ]);

    assert_eq!(run.output(), "high");
    assert_eq!(
        fs::read_to_string(directory.path().join("from-guest")).unwrap(),
        "low\n"
    );
}

#[test]
fn a_read_only_file_of_the_host_can_be_read_and_not_written() {
    let host = Host::take();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "high").unwrap();

    let mount = format!(
        "type=bind,src={},dst=/tide,options=rbind:ro",
        file.path().display()
    );
    let run = host
        .container("bind-file")
        .options(&["--mount", &mount])
        .run(&["sh", "-c", "cat /tide; echo low > /tide"]);

    assert_eq!((run.status, run.stdout.as_str()), (1, "high"), "{run:?}");
    assert_eq!(fs::read_to_string(file.path()).unwrap(), "high");
}

#[test]
fn containers_see_neither_the_guests_image_nor_the_agent() {
    let host = Host::take();

    let script =
        "mknod /tmp/image b 259 0 && head -c 1 /tmp/image; ls /run/hull; ls /sbin/hull-agent";
    let run = host.container("hidden").run(&["sh", "-c", script]);

    assert_eq!((run.status, run.stdout.as_str()), (1, ""), "{run:?}");
}

#[test]
fn the_demonstration_runs_on_a_private_containerd() {
    let host = Host::take();

    let run = command(
        "sh",
        &[
            "-c",
            &format!(
                "{} {}",
                host.shared("demo-direct").display(),
                host.shared("busybox.tar").display()
            ),
        ],
        b"",
    );

    assert_eq!(run.status, 0, "{run:#?}");
    assert!(run.stdout.contains("container"), "{run:#?}");
}
