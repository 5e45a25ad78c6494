//! config-linux.md: the control group and its resources.

use serde_json::{Value, json};

use super::{demand, fact, limit, mount, push, section};

/// Shows the container its own cgroup, with these resources.
fn resources(spec: &mut Value, resources: &Value) {
    push(
        &mut spec["linux"]["namespaces"],
        json!({ "type": "cgroup" }),
    );
    mount(spec, "/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]);
    for (name, value) in resources.as_object().expect("resources are an object") {
        spec["linux"]["resources"][name] = value.clone();
    }
}

#[test]
fn limits() {
    section("config-linux.md#configLinuxControlGroups", |cases| {
        let given = json!({
            "memory": { "limit": 134_217_728, "reservation": 67_108_864, "swap": 201_326_592 },
            "cpu": { "shares": 512, "quota": 300_000, "period": 200_000, "burst": 10_000,
                     "cpus": "0", "mems": "0" },
            "pids": { "limit": 33 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }],
            "unified": { "memory.high": "104857600" },
        });
        cases.inside(
            |spec| resources(spec, &given),
            &[
                fact("memory.limit", "cat /sys/fs/cgroup/memory.max", "134217728"),
                fact(
                    "memory.reservation",
                    "cat /sys/fs/cgroup/memory.low",
                    "67108864",
                ),
                fact(
                    "memory.swap is memory and swap",
                    "cat /sys/fs/cgroup/memory.swap.max",
                    "67108864",
                ),
                fact(
                    "cpu.shares is a weight below the default",
                    "awk '{ print ($1 >= 1 && $1 < 100) }' /sys/fs/cgroup/cpu.weight",
                    "1",
                ),
                fact(
                    "cpu.quota and cpu.period",
                    "cat /sys/fs/cgroup/cpu.max",
                    "300000 200000",
                ),
                fact("cpu.burst", "cat /sys/fs/cgroup/cpu.max.burst", "10000"),
                fact("cpu.cpus", "cat /sys/fs/cgroup/cpuset.cpus", "0"),
                fact("cpu.mems", "cat /sys/fs/cgroup/cpuset.mems", "0"),
                fact("pids.limit", "cat /sys/fs/cgroup/pids.max", "33"),
                fact(
                    "hugepageLimits",
                    "cat /sys/fs/cgroup/hugetlb.2MB.max",
                    "4194304",
                ),
                fact(
                    "hugepageLimits hold for reservations",
                    "cat /sys/fs/cgroup/hugetlb.2MB.rsvd.max",
                    "4194304",
                ),
                fact(
                    "unified is written to its file",
                    "cat /sys/fs/cgroup/memory.high",
                    "104857600",
                ),
                fact(
                    "the process is in the cgroup",
                    "grep -c '^1$' /sys/fs/cgroup/cgroup.procs",
                    "1",
                ),
            ],
        );
        cases.inside(
            |spec| {
                let given = json!({
                    "cpu": { "idle": 1, "period": 50_000 },
                    "memory": { "limit": -1 },
                    "pids": { "limit": -1 },
                });
                resources(spec, &given);
            },
            &[
                fact("cpu.idle", "cat /sys/fs/cgroup/cpu.idle", "1"),
                fact(
                    "cpu.period alone",
                    "cat /sys/fs/cgroup/cpu.max",
                    "max 50000",
                ),
                fact(
                    "a memory limit of -1 is none",
                    "cat /sys/fs/cgroup/memory.max",
                    "max",
                ),
                fact(
                    "a limit of -1 processes is none",
                    "cat /sys/fs/cgroup/pids.max",
                    "max",
                ),
            ],
        );
        cases.inside(
            |spec| {
                let given = json!({ "memory": { "limit": 67_108_864, "swap": 67_108_864 } });
                resources(spec, &given);
            },
            &[fact(
                "memory.swap that is memory.limit is no swap",
                "cat /sys/fs/cgroup/memory.swap.max",
                "0",
            )],
        );
        cases.runs(
            demand("a process that takes more than memory.limit is killed"),
            |spec| {
                spec["linux"]["resources"]["memory"] =
                    json!({ "limit": 33_554_432, "swap": 33_554_432 });
                let script = "sh -c 'dd if=/dev/zero of=/dev/null bs=64M count=1'; echo $?";
                spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
            },
            (0, "137"),
        );
        for (text, given, words) in [
            (
                "swap below the memory limit",
                json!({ "memory": { "limit": 67_108_864, "swap": 33_554_432 } }),
                "swap",
            ),
            (
                "a processor that does not exist",
                json!({ "cpu": { "cpus": "63" } }),
                "cpuset.cpus",
            ),
            (
                "a size of huge pages that does not exist",
                json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 0 }] }),
                "page size",
            ),
            (
                "a controller that does not exist",
                json!({ "unified": { "tide.max": "1" } }),
                "tide",
            ),
        ] {
            cases.refused(demand(text), |spec| resources(spec, &given), words);
        }
        cases.refused(
            demand("a device's access that does not exist").unproven("both pass over the letter"),
            |spec| {
                let given = json!({ "devices": [{ "allow": true, "access": "x" }] });
                resources(spec, &given);
            },
            "access",
        );
    });
}

#[test]
fn devices_of_the_host() {
    section("config-linux.md#configLinuxBlockIO", |cases| {
        let rate = json!([{ "major": 254, "minor": 0, "rate": 1_000_000 }]);
        let limits = [
            (limit("throttleReadBpsDevice"), "throttleReadBpsDevice"),
            (limit("throttleWriteBpsDevice"), "throttleWriteBpsDevice"),
            (limit("throttleReadIOPSDevice"), "throttleReadIOPSDevice"),
            (limit("throttleWriteIOPSDevice"), "throttleWriteIOPSDevice"),
        ];
        for (limit, name) in limits {
            let words = format!("linux.resources.blockIO.{name}");
            cases.refused(
                limit,
                |spec| spec["linux"]["resources"]["blockIO"] = json!({ name: rate }),
                &words,
            );
        }
    });
}

#[test]
fn intel_rdt() {
    section("config-linux.md#configLinuxIntelRdt", |cases| {
        cases.refused(
            demand("without resctrl it is an error"),
            |spec| spec["linux"]["intelRdt"] = json!({ "closID": "tide" }),
            "linux.intelRdt",
        );
    });
}
