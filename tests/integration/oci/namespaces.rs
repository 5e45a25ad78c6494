//! config-linux.md: namespaces, new ones and those that are joined by a path.

use serde_json::{Value, json};

use super::{Demand, Stage, Verdict, contains, demand, fact, limit, push, same, section};

fn without(spec: &mut Value, kind: &str) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("namespaces are an array")
        .retain(|namespace| namespace["type"] != kind);
}

fn with(spec: &mut Value, kind: &str) {
    push(&mut spec["linux"]["namespaces"], json!({ "type": kind }));
}

#[test]
fn namespaces() {
    section("config-linux.md#configLinuxNamespaces", |cases| {
        cases.inside(
            |spec| {
                with(spec, "cgroup");
                with(spec, "time");
                spec["linux"]["timeOffsets"] = json!({
                    "monotonic": { "secs": 172_800, "nanosecs": 5 },
                    "boottime": { "secs": 604_800 },
                });
                spec["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
                spec["process"]["capabilities"]["permitted"] = json!(["CAP_SYS_ADMIN"]);
                spec["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
            },
            &[
                fact(
                    "in a pid namespace the process is the first",
                    "cat /proc/1/comm",
                    "sh",
                ),
                fact(
                    "in a pid namespace there are no other processes",
                    "ls -d /proc/[0-9]* | wc -l | awk '{ print ($1 < 10) }'",
                    "1",
                ),
                fact(
                    "a network namespace has its own interfaces",
                    "ip -4 -o addr | cut -d' ' -f2",
                    "lo",
                ),
                fact(
                    "a mount namespace has its own mounts",
                    "mount -t tmpfs none /srv && type /srv",
                    "tmpfs",
                ),
                fact(
                    "a uts namespace has its own name",
                    "hostname tide && hostname",
                    "tide",
                ),
                fact(
                    "an ipc namespace has its own objects",
                    "awk 'END { print NR }' /proc/sysvipc/shm",
                    "1",
                ),
                fact(
                    "in a cgroup namespace the cgroup is the root",
                    "cat /proc/self/cgroup",
                    "0::/",
                ),
                fact(
                    "timeOffsets shift the monotonic clock",
                    "awk '/monotonic/ { print $2, $3 }' /proc/self/timens_offsets",
                    "172800 5",
                ),
                fact(
                    "timeOffsets shift the boot clock",
                    "awk '/boottime/ { print $2, $3 }' /proc/self/timens_offsets",
                    "604800 0",
                ),
            ],
        );
        cases.refused(
            limit("without a pid namespace it is the runtime's"),
            |spec| without(spec, "pid"),
            "the host's pid namespace",
        );
        cases.inside(
            |spec| without(spec, "cgroup"),
            &[fact(
                "without a cgroup namespace it is the runtime's",
                "grep -c '^0::/.' /proc/self/cgroup",
                "1",
            )],
        );
        cases.refused(
            demand("namespaces of the same type are an error"),
            |spec| with(spec, "ipc"),
            "linux.namespaces",
        );
        cases.refused(
            demand("a type that does not exist is an error"),
            |spec| with(spec, "tide"),
            "tide",
        );
        cases.refused(
            demand("hostname needs a uts namespace"),
            |spec| {
                without(spec, "uts");
                spec["hostname"] = json!("tide");
            },
            "UTS namespace",
        );
        cases.refused(
            demand("timeOffsets need a time namespace"),
            |spec| spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } }),
            "time namespace",
        );
    });
}

/// Type, file and the demand that a path of that type is joined.
const JOINED: [(&str, &str, Demand); 5] = [
    (
        "pid",
        "pid",
        demand("a pid namespace with a path is joined"),
    ),
    (
        "network",
        "net",
        demand("a network namespace with a path is joined"),
    ),
    (
        "ipc",
        "ipc",
        demand("an ipc namespace with a path is joined"),
    ),
    (
        "uts",
        "uts",
        demand("a uts namespace with a path is joined"),
    ),
    (
        "cgroup",
        "cgroup",
        demand("a cgroup namespace with a path is joined"),
    ),
];

/// All of the first container's namespaces are joined, and looked at.
fn join_all(stage: &Stage<'_>) -> Vec<Verdict> {
    stage.beside(
        |spec| with(spec, "cgroup"),
        |first, pid| {
            let script = "for i in pid net ipc uts cgroup; do readlink /proc/self/ns/$i; done";
            let theirs = first.exec("look", &["/bin/sh", "-c", script]);
            let ours = stage.run(|spec| {
                for (kind, file, _) in JOINED {
                    without(spec, kind);
                    let path = format!("/proc/{pid}/ns/{file}");
                    push(
                        &mut spec["linux"]["namespaces"],
                        json!({ "type": kind, "path": path }),
                    );
                }
                spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
            });
            let line = |text: &str, number| text.lines().nth(number).map(str::to_owned);
            let verdict = |number| match line(&theirs.stdout, number) {
                None => Err(format!("{theirs:?}")),
                namespace => same(line(&ours.stdout, number), namespace)
                    .map_err(|differs| format!("{differs}: {}", ours.stderr.trim())),
            };
            (0..JOINED.len()).map(verdict).collect()
        },
    )
}

#[test]
fn joined() {
    section("config-linux.md#configLinuxNamespaces", |cases| {
        let demands = JOINED.each_ref().map(|(_, _, demand)| demand);
        cases.judge(&demands, join_all);
        cases.story(
            demand("sysctl of a network namespace that is not joined with the others is its own"),
            |stage| {
                let file = "/proc/sys/net/core/somaxconn";
                let (theirs, ours) = stage.beside(
                    |_| {},
                    |first, pid| {
                        let ours = stage.run(|spec| {
                            without(spec, "ipc");
                            let path = format!("/proc/{pid}/ns/ipc");
                            let joined = json!({ "type": "ipc", "path": path });
                            push(&mut spec["linux"]["namespaces"], joined);
                            spec["linux"]["sysctl"] = json!({ "net.core.somaxconn": "321" });
                            spec["process"]["args"] = json!(["/bin/cat", file]);
                        });
                        (first.exec("look", &["/bin/cat", file]), ours)
                    },
                );
                same((ours.status, ours.stdout.trim()), (0, "321"))
                    .map_err(|differs| format!("{differs}: {}", ours.stderr.trim()))?;
                same(theirs.status, 0)?;
                same(theirs.stdout.trim() == "321", false)
            },
        );
        cases.story(
            demand("a path of another type's namespace is an error"),
            |stage| {
                let run = stage.beside(
                    |_| {},
                    |_, pid| {
                        stage.run(|spec| {
                            without(spec, "uts");
                            let path = format!("/proc/{pid}/ns/ipc");
                            push(
                                &mut spec["linux"]["namespaces"],
                                json!({ "type": "uts", "path": path }),
                            );
                        })
                    },
                );
                same((run.status, run.stdout.as_str()), (1, ""))?;
                if stage.is_hull() {
                    contains(&run.stderr, "linux.namespaces[uts].path")?;
                }
                Ok(())
            },
        );
        cases.refused(
            demand("a path where no namespace is is an error"),
            |spec| {
                without(spec, "ipc");
                push(
                    &mut spec["linux"]["namespaces"],
                    json!({ "type": "ipc", "path": "/proc/999999999/ns/ipc" }),
                );
            },
            "linux.namespaces[ipc].path",
        );
    });
}
