//! Many lives, and many processes at once. They take minutes: `make endurance`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use hull_tests::{Host, command, wait};

/// Where containerd tells of itself.
const DEBUG: &str = "/run/containerd-debug.sock";

/// containerd, which serves every container.
struct Containerd(PathBuf);

impl Containerd {
    /// Starts it anew, as one that tells of itself.
    fn restarted() -> Self {
        let script = format!(
            "echo '  address = \"{DEBUG}\"' >>/etc/containerd/config.toml
             kill $(pidof containerd); while pidof containerd; do sleep 0.1; done
             setsid containerd >>/var/log/containerd.log 2>&1 </dev/null &
             until ctr version; do sleep 0.1; done"
        );
        let restarted = command("sh", &["-c", &script], b"");
        assert_eq!(restarted.status, 0, "{restarted:#?}");
        let pid = command("pidof", &["containerd"], b"");
        Self(PathBuf::from("/proc").join(pid.output()))
    }

    /// KiB that are in use on its heap. What the kernel counts moves by the 2 MiB that Go's allocator takes
    /// and gives back at a time.
    fn heap(&self) -> u64 {
        let mut debug = UnixStream::connect(DEBUG).expect("it serves");
        debug
            .write_all(b"GET /debug/pprof/heap?gc=1&debug=1 HTTP/1.0\r\n\r\n")
            .expect("it reads");
        let mut text = String::new();
        debug.read_to_string(&mut text).expect("it answers");
        let mut lines = text.lines();
        let bytes = lines.find_map(|line| line.strip_prefix("# HeapAlloc = "));
        let bytes: Option<u64> = bytes.and_then(|bytes| bytes.parse().ok());
        bytes.expect("Go's runtime/pprof has a line for it") / 1024
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(self.0.join("fd")).expect("it runs").count()
    }
}

fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[test]
#[ignore = "takes many minutes: make endurance"]
fn two_hundred_lives_leave_nothing_and_cost_containerd_nothing() {
    let containerd = Containerd::restarted();
    let host = Host::take();
    let mut memory = Vec::new();
    let mut descriptors = Vec::new();

    for life in 0..200 {
        let container = host.container("life").start(&["sleep", "1000"]);
        let exec = container.exec("e", &["echo", "hello"]);
        assert_eq!(exec.output(), "hello", "life {life}");
        assert_eq!(container.end(), 137, "life {life}");
        memory.push(containerd.heap());
        descriptors.push(containerd.descriptors());
        if (life + 1) % 20 == 0 {
            println!("{} lives, containerd has {} KiB", life + 1, memory[life]);
        }
    }

    // It keeps things for a while: medians of many, after it has warmed up.
    let (early, late) = (
        median(memory[20..80].to_vec()),
        median(memory[140..].to_vec()),
    );
    println!(
        "containerd: {early} KiB early, {late} KiB late; descriptors {} and {}",
        descriptors[20], descriptors[199]
    );
    assert!(
        late < early + 1024,
        "containerd grew from {early} to {late} KiB"
    );
    assert!(
        descriptors[199] <= descriptors[20],
        "containerd has {} descriptors, and had {}",
        descriptors[199],
        descriptors[20]
    );
}

#[test]
#[ignore = "takes many minutes: make endurance"]
fn a_hundred_processes_at_once_each_say_their_own() {
    let host = Host::take();
    let container = host.container("crowd").start(&["sleep", "10000"]);
    let outputs = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..100).map(|number| format!("e{number}")).collect();

    // A hundred clients at once would be a test of how long `ctr` waits for containerd.
    for name in &names {
        let script = format!("until [ -e /go ]; do sleep 1; done; echo {name}");
        let output = outputs.path().join(name);
        container.exec_detached(name, &output, &["sh", "-c", &script]);
    }
    let there = host.ctr(&["task", "ps", "crowd"]);
    assert_eq!(there.stdout.matches("exec_id").count(), 100, "{there:#?}");
    assert_eq!(container.exec("go", &["touch", "/go"]).status, 0);

    for name in &names {
        let output = wait::until("the process has spoken", || {
            let output = fs::read_to_string(outputs.path().join(name)).ok()?;
            output.ends_with('\n').then_some(output)
        });
        assert_eq!(output.trim(), name);
    }
    container.end();
}
