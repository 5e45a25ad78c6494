//! Many lives, and many processes at once. They take minutes: `make endurance`.

use std::fs;
use std::path::PathBuf;

use hull_tests::{Host, command, wait};

/// A process of the host that serves every container.
struct Daemon(PathBuf);

impl Daemon {
    fn named(name: &str) -> Self {
        let pid = command("pidof", &[name], b"");
        Self(PathBuf::from("/proc").join(pid.output()))
    }

    /// Memory that is its own, in KiB.
    fn memory(&self) -> u64 {
        let rollup = fs::read_to_string(self.0.join("smaps_rollup")).expect("it runs");
        let mut lines = rollup.lines();
        let line = lines.find_map(|line| line.strip_prefix("Private_Dirty:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number
            .and_then(|number| number.parse().ok())
            .expect("proc(5) has a line for it")
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
    let host = Host::take();
    let containerd = Daemon::named("containerd");
    let mut memory = Vec::new();
    let mut descriptors = Vec::new();

    for life in 0..200 {
        let container = host.container("life").start(&["sleep", "1000"]);
        let exec = container.exec("e", &["echo", "hello"]);
        assert_eq!(exec.output(), "hello", "life {life}");
        assert_eq!(container.end(), 137, "life {life}");
        memory.push(containerd.memory());
        descriptors.push(containerd.descriptors());
        if (life + 1) % 20 == 0 {
            println!("{} lives, containerd has {} KiB", life + 1, memory[life]);
        }
    }

    // A garbage-collected heap breathes: medians of many, after it has warmed up.
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
