//! What time it is in a container.

use std::time::{Duration, SystemTime};

use hull_tests::{Container, Host, command, wait};

/// The host's clock, an hour on. Set back when dropped.
struct HourAhead;

const HOUR: Duration = Duration::from_secs(3600);

fn set(time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.expect("it is after 1970").as_secs_f64();
    let set = command("date", &["--set", &format!("@{since}")], b"");
    assert_eq!(set.status, 0, "{set:#?}");
}

impl HourAhead {
    fn begin() -> Self {
        set(SystemTime::now() + HOUR);
        Self
    }
}

impl Drop for HourAhead {
    fn drop(&mut self) {
        set(SystemTime::now() - HOUR);
    }
}

/// Whether a container shows the host's time, give or take what it takes to ask for it.
fn agrees(container: &Container<'_>, exec_id: &str) -> bool {
    let before = SystemTime::now();
    let shown = container.exec(exec_id, &["date", "+%s"]);
    let after = SystemTime::now();
    let shown: u64 = shown.output().parse().expect("it is a number");
    let shown = SystemTime::UNIX_EPOCH + Duration::from_secs(shown);
    before - Duration::from_secs(2) <= shown && shown <= after + Duration::from_secs(1)
}

#[test]
fn a_containers_clock_is_the_hosts_also_when_that_is_set() {
    let host = Host::take();
    let container = host.container("clock").start(&["sleep", "1000"]);
    assert!(agrees(&container, "before"));

    let ahead = HourAhead::begin();
    wait::until("it is an hour later", || {
        agrees(&container, "later").then_some(())
    });
    drop(ahead);
    wait::until("it is what it was", || {
        agrees(&container, "again").then_some(())
    });

    container.end();
}
