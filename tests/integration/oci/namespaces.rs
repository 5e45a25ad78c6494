//! config-linux.md: namespaces. Those that are joined by path are not done yet.

use serde_json::{Value, json};

use super::{demand, fact, push, section};

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
        cases.inside(
            |spec| without(spec, "pid"),
            &[fact(
                "without a pid namespace it is the runtime's",
                "cat /proc/1/comm | grep -c '^sh$'",
                "0",
            )],
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
