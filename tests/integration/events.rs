//! The events of `ctr events`.

use std::fs::{self, File};

use hull_tests::{Host, Running, wait};

#[test]
fn every_event_of_a_life_comes_once_and_in_order() {
    let host = Host::take();
    let log = tempfile::NamedTempFile::new().unwrap();
    let watch = Running::start(
        std::process::Command::new("ctr").arg("events"),
        File::create(log.path()).unwrap().into(),
    );
    // Nothing says that the subscription stands; an event of our own that arrives does.
    wait::until("ctr events listens", || {
        let _ = host.ctr(&["namespace", "label", "default", "hull.test=1"]);
        fs::read_to_string(log.path())
            .unwrap()
            .contains("/namespaces/update")
            .then_some(())
    });

    let container = host.container("events").start(&["sleep", "1000"]);
    assert_eq!(container.exec("once", &["true"]).status, 0);
    container.end();

    let topics = wait::until("the last event", || {
        let topics: Vec<String> = fs::read_to_string(log.path())
            .unwrap()
            .lines()
            .filter_map(|line| {
                line.split_whitespace()
                    .find(|word| word.starts_with("/tasks/"))
            })
            .map(str::to_owned)
            .collect();
        topics
            .last()
            .is_some_and(|topic| topic == "/tasks/delete")
            .then_some(topics)
    });
    drop(watch);
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exit",
            "/tasks/delete",
        ]
    );
}
