//! config-linux.md: user namespaces; config.md: idmapped mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use serde_json::{Value, json};

use super::{Demand, Stage, Verdict, demand, fact, mount, push, same, section};

/// Two lines of ids: root and those after it, and one far away.
fn maps(first: u32) -> Value {
    json!([
        { "containerID": 0, "hostID": first, "size": 100 },
        { "containerID": 1000, "hostID": first + 7000, "size": 1 },
    ])
}

fn map_users(spec: &mut Value) {
    push(&mut spec["linux"]["namespaces"], json!({ "type": "user" }));
    spec["linux"]["uidMappings"] = maps(100_000);
    spec["linux"]["gidMappings"] = maps(200_000);
}

fn may_do_all(spec: &mut Value) {
    let all = json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN", "CAP_SETUID"]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = all.clone();
    }
}

#[test]
fn user_namespaces() {
    section("config-linux.md#user-namespace-mappings", |cases| {
        cases.inside(
            |spec| {
                map_users(spec);
                may_do_all(spec);
            },
            &[
                fact(
                    "uidMappings are the namespace's, in their order",
                    "awk '{ print $1, $2, $3 }' /proc/self/uid_map | tr '\\n' ,",
                    "0 100000 100,1000 107000 1,",
                ),
                fact(
                    "gidMappings are the namespace's, in their order",
                    "awk '{ print $1, $2, $3 }' /proc/self/gid_map | tr '\\n' ,",
                    "0 200000 100,1000 207000 1,",
                ),
                fact(
                    "the process is the container's root",
                    "id -u; id -g",
                    "0\n0",
                ),
                fact(
                    "ids that are not mapped are nobody's",
                    "stat -c %u:%g /bin/busybox",
                    "65534:65534",
                ),
                fact(
                    "capabilities hold within the namespace",
                    "mount -t tmpfs none /tmp && type /tmp",
                    "tmpfs",
                ),
                fact(
                    "and for the network namespace that belongs to it",
                    "ip link set lo mtu 1234; cat /sys/class/net/lo/mtu",
                    "1234",
                ),
                fact(
                    "but not outside of it",
                    "echo 1 2>/dev/null >/proc/sys/kernel/panic || echo no",
                    "no",
                ),
            ],
        );
        cases.inside(
            |spec| {
                map_users(spec);
                spec["process"]["user"] =
                    json!({ "uid": 1000, "gid": 1000, "additionalGids": [5] });
            },
            &[fact(
                "process.user is a user of the namespace",
                "id -u; id -g; id -G",
                "1000\n1000\n1000 5",
            )],
        );
        cases.story(demand("a user namespace with a path is joined"), join_users);
    });
}

#[test]
fn cgroup_ownership() {
    section("config-linux.md#cgroup-ownership", |cases| {
        let cgroup = |spec: &mut Value, option: &str| {
            map_users(spec);
            let namespace = json!({ "type": "cgroup" });
            push(&mut spec["linux"]["namespaces"], namespace);
            mount(spec, "/sys/fs/cgroup", "cgroup", "cgroup", &[option]);
        };
        cases.inside(
            |spec| cgroup(spec, "rw"),
            &[
                fact(
                    "a cgroup that is mounted writable is the user's (SHOULD)",
                    "cd /sys/fs/cgroup; stat -c %u . cgroup.procs cgroup.threads cgroup.subtree_control",
                    "0\n0\n0\n0",
                ),
                fact(
                    "so that others can be made in it",
                    "mkdir /sys/fs/cgroup/own && echo made",
                    "made",
                ),
                fact(
                    "what is not delegated is not the user's (SHOULD)",
                    "stat -c %u /sys/fs/cgroup/cgroup.max.depth",
                    "65534",
                ),
            ],
        );
        cases.inside(
            |spec| cgroup(spec, "ro"),
            &[fact(
                "a cgroup that is mounted readonly is not (SHOULD)",
                "stat -c %u /sys/fs/cgroup",
                "65534",
            )],
        );
    });
}

fn join_users(stage: &Stage<'_>) -> Verdict {
    stage.beside(map_users, |first, pid| {
        let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; id -u";
        let theirs = first.exec("look", &["/bin/sh", "-c", script]);
        let ours = stage.run(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.expect("namespaces are an array");
            for namespace in &mut *namespaces {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(format!("/proc/{pid}/ns/net"));
                }
            }
            let path = format!("/proc/{pid}/ns/user");
            namespaces.push(json!({ "type": "user", "path": path }));
            spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        });
        same(ours.stdout.as_str(), theirs.stdout.as_str())
            .and_then(|()| same(theirs.status, 0))
            .map_err(|differs| format!("{differs}: {}", ours.stderr.trim()))
    })
}

/// What a mapped file looks like in the container, and what is made there on the host.
const IDMAPPED: [Demand; 2] = [
    demand("uidMappings and gidMappings of a mount change the owners that are seen"),
    demand("and those of what is made there"),
];

fn idmap(stage: &Stage<'_>) -> Vec<Verdict> {
    let volume = stage.bundle.path("volume");
    let _ = fs::remove_dir_all(&volume);
    fs::create_dir(&volume).expect("make a volume");
    fs::write(volume.join("theirs"), "").expect("fill the volume");
    let everyone = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&volume, everyone).expect("make a volume");
    chown(volume.join("theirs"), Some(3), Some(4)).expect("fill the volume");
    let run = stage.run(|spec| {
        let source = volume.display().to_string();
        mount(spec, "/srv", "bind", &source, &["rbind", "idmap"]);
        let mounts = spec["mounts"].as_array_mut().expect("mounts are an array");
        let last = mounts.last_mut().expect("one was added");
        last["uidMappings"] = json!([{ "containerID": 0, "hostID": 5000, "size": 100 }]);
        last["gidMappings"] = json!([{ "containerID": 0, "hostID": 6000, "size": 100 }]);
        spec["process"]["user"] = json!({ "uid": 5007, "gid": 6008 });
        let script = "stat -c %u:%g /srv/theirs; touch /srv/mine";
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
    });
    let host = |name: &str| {
        let file = fs::metadata(volume.join(name)).map_err(|e| e.to_string())?;
        Ok::<_, String>((file.uid(), file.gid()))
    };
    let failed = |differs| format!("{differs}: {}", run.stderr.trim());
    vec![
        same(run.stdout.lines().next(), Some("5003:6004")).map_err(failed),
        host("mine")
            .and_then(|owner| same(owner, (7, 8)))
            .map_err(failed),
    ]
}

#[test]
fn idmapped_mounts() {
    section("config.md#mounts", |cases| {
        cases.judge(&IDMAPPED.each_ref(), idmap);
    });
}
