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

/// Starts it, and tells about it before it is removed.
fn while_running(stage: &Stage<'_>, tell: impl Fn(&Container<'_>) -> Verdict) -> Verdict {
    let up = stage.bundle.path("rootfs/srv/up");
    let _ = fs::remove_file(&up);
    let container = stage.container(waits).start(&[]);
    wait::until("the process is up", || up.exists().then_some(()));
    let verdict = tell(&container);
    let _ = stage.host.ctr(&["task", "kill", "-s", "KILL", ID]);
    container.wait_until_stopped();
    container.remove();
    verdict
}

fn status(container: &Container<'_>) -> Option<String> {
    container.listed()?.last().cloned()
}

#[test]
fn state() {
    section("runtime.md#runtimeState", |cases| {
        cases.story(
            demand("a running container is running, and has a pid"),
            |stage| {
                while_running(stage, |container| {
                    same(status(container), Some("RUNNING".to_owned()))?;
                    let pid = container
                        .listed()
                        .and_then(|line| line[1].parse::<u32>().ok());
                    same(
                        pid.is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)),
                        true,
                    )
                })
            },
        );
        cases.story(
            demand("a container whose process ended is stopped"),
            |stage| {
                while_running(stage, |container| {
                    container.kill("KILL");
                    container.wait_until_stopped();
                    same(status(container), Some("STOPPED".to_owned()))
                })
            },
        );
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
        cases.story(demand("kill sends the signal"), |stage| {
            let seen = stage.bundle.path("rootfs/srv/seen");
            let _ = fs::remove_file(&seen);
            while_running(stage, |container| {
                container.kill("TERM");
                container.wait_until_stopped();
                same(fs::read_to_string(&seen).unwrap_or_default().trim(), "term")
            })
        });
        cases.story(
            demand("a signal to a stopped container is an error"),
            |stage| {
                while_running(stage, |container| {
                    container.kill("KILL");
                    container.wait_until_stopped();
                    let killed = stage.host.ctr(&["task", "kill", "-s", "TERM", ID]);
                    same(killed.status, 1)?;
                    contains(&killed.stderr, "not found")
                })
            },
        );
        cases.story(
            demand("to delete a running container is an error without effect"),
            |stage| {
                while_running(stage, |container| {
                    let deleted = stage.host.ctr(&["task", "rm", ID]);
                    same(deleted.status, 1)?;
                    same(status(container), Some("RUNNING".to_owned()))
                })
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
        cases.story(demand("an id that is taken is an error"), |stage| {
            while_running(stage, |container| {
                let again = stage.host.ctr(&["task", "start", "--detach", ID]);
                same(again.status, 1)?;
                same(status(container), Some("RUNNING".to_owned()))
            })
        });
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
