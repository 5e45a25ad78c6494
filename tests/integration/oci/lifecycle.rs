//! runtime.md: operations on a container, through containerd.

use std::fs;

use hull_tests::{Container, wait};
use serde_json::{Value, json};

use super::{ID, Stage, Verdict, contains, demand, same, section};

/// A process that goes on until SIGTERM, and then writes to `/srv/seen`.
fn waits(spec: &mut Value) {
    let script =
        "trap 'echo term >/srv/seen; exit 3' TERM; echo up >/srv/up; while :; do sleep 0.1; done";
    spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
}

fn status(container: &Container<'_>) -> Option<String> {
    container.listed()?.last().cloned()
}

/// One container from its start to its end: what is demanded of each step of its life.
const LIFE: [super::Demand; 6] = [
    demand("a running container is running, and has a pid"),
    demand("to delete a running container is an error without effect"),
    demand("an id that is taken is an error"),
    demand("kill sends the signal"),
    demand("a container whose process ended is stopped"),
    demand("a signal to a stopped container is an error"),
];

fn live(stage: &Stage<'_>) -> Vec<Verdict> {
    let file = |name: &str| stage.bundle.path("rootfs/srv").join(name);
    for name in ["up", "seen"] {
        let _ = fs::remove_file(file(name));
    }
    let running = |container: &Container<'_>| same(status(container).as_deref(), Some("RUNNING"));
    let refused = |words: &[&str]| {
        let done = stage.host.ctr(words);
        same(done.status, 1).map(|()| done.stderr)
    };

    let container = stage.container(waits).start(&[]);
    wait::until("the process is up", || file("up").exists().then_some(()));
    let line = container.listed().unwrap_or_default();
    let process = line.get(1).map(|pid| format!("/proc/{pid}"));
    let has_pid = process.is_some_and(|process| fs::exists(process).unwrap_or(false));
    let mut verdicts = vec![running(&container).and_then(|()| same(has_pid, true))];
    let deleted = refused(&["task", "rm", ID]);
    verdicts.push(deleted.and_then(|_| running(&container)));
    let started = refused(&["task", "start", "--detach", ID]);
    verdicts.push(started.and_then(|_| running(&container)));

    container.kill("TERM");
    container.wait_until_stopped();
    let seen = fs::read_to_string(file("seen")).unwrap_or_default();
    verdicts.push(same(seen.trim(), "term"));
    verdicts.push(same(status(&container).as_deref(), Some("STOPPED")));
    let killed = refused(&["task", "kill", "-s", "TERM", ID]);
    verdicts.push(killed.and_then(|said| contains(&said, "not found")));
    container.remove();
    verdicts
}

#[test]
fn lifecycle() {
    section("runtime.md#runtimeLifecycle", |cases| {
        cases.judge(&LIFE.each_ref(), live);
    });
}

#[test]
fn operations() {
    section("runtime.md#runtimeOperations", |cases| {
        cases.story(
            demand("create does not run the process; later changes of config.json do nothing"),
            |stage| {
                let ran = stage.bundle.path("rootfs/srv/ran");
                let _ = fs::remove_file(&ran);
                let script = format!(
                    "state=$(cat); test ! -e {} || exit 1\n\
                 bundle=$(echo \"$state\" | sed 's/.*\"bundle\": *\"\\([^\"]*\\)\".*/\\1/')\n\
                 sed -i 's/it runs/it differs/' $bundle/config.json",
                    ran.display()
                );
                let hook = stage.bundle.hook("create", &script);
                let run = stage.run(|spec| {
                    spec["process"]["args"] =
                        json!(["/bin/sh", "-c", "touch /srv/ran; echo it runs"]);
                    spec["hooks"] = json!({ "createRuntime": [hook] });
                });
                match same(run.stdout.trim(), "it runs") {
                    Err(differs) => Err(format!("{differs}: {}", run.stderr)),
                    met => met,
                }
            },
        );
        cases.story(
            demand("operations on a container that does not exist are errors"),
            |stage| {
                for operation in [&["task", "kill"][..], &["task", "rm"], &["task", "start"]] {
                    let done = stage
                        .host
                        .ctr(&[operation, &["nothing-of-the-kind"]].concat());
                    same(done.status, 1)?;
                }
                Ok(())
            },
        );
        cases.story(
            demand("a deleted container's id may be used again, and its resources are gone"),
            |stage| {
                let run = |_| {
                    stage.run(|spec| {
                        spec["process"]["args"] =
                            json!(["/bin/sh", "-c", "ls /run; touch /run/mine"]);
                    })
                };
                for run in [1, 2].map(run) {
                    same((run.status, run.stdout.as_str()), (0, ""))?;
                }
                let mounts =
                    fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
                same(mounts.contains(&format!("/{ID}/")), false)
            },
        );
    });
}
