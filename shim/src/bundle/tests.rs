//! Translation, field by field.

use serde_json::{Value, json};

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxNamespaceType, Mount, Spec};

use super::*;
use crate::bind_mount::Manner;

/// A configuration such as `ctr` makes, with `change` merged in at the top.
fn spec(change: &Value) -> Spec {
    let mut value = json!({
        "ociVersion": "1.1.0",
        "process": { "cwd": "/", "args": ["true"], "user": { "uid": 0, "gid": 0 },
                     "apparmorProfile": "docker-default", "selinuxLabel": "a_t" },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [ { "destination": "/proc", "type": "proc", "source": "proc" } ],
        "linux": { "cgroupsPath": "system.slice:cri:1",
                   "namespaces": [ { "type": "pid" }, { "type": "network" } ] },
    });
    for (key, new) in change.as_object().unwrap() {
        value[key] = new.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn guest(change: &Value) -> Result<Guest, Unsupported> {
    translate(spec(change), "tide", Path::new("/share/root"), &Nobody)
}

#[test]
fn paths_cgroup_and_labels_are_the_guests() {
    let guest = guest(&json!({})).unwrap();
    let value = serde_json::to_value(&guest.spec).unwrap();
    assert_eq!(
        value["root"],
        json!({ "path": "/share/root", "readonly": true })
    );
    assert_eq!(value["linux"]["cgroupsPath"], "/hull/tide");
    assert_eq!(value["process"].get("apparmorProfile"), None);
    assert_eq!(value["process"].get("selinuxLabel"), None);
    assert_eq!(value["mounts"][0]["source"], "proc");
}

#[test]
fn the_first_containers_network_is_the_machines() {
    let namespaces = |network: Value| json!({ "linux": { "namespaces": [ { "type": "pid" }, { "type": "ipc" }, network ] } });
    let new = guest(&namespaces(json!({ "type": "network" }))).unwrap();
    assert_eq!(new.network, Network::Own(None));
    let kept = serde_json::to_value(&new.spec).unwrap()["linux"]["namespaces"].clone();
    assert_eq!(kept, json!([ { "type": "pid" }, { "type": "ipc" } ]));

    let given = guest(&namespaces(
        json!({ "type": "network", "path": "/run/netns/a" }),
    ));
    let path = Some("/run/netns/a".into());
    assert_eq!(given.unwrap().network, Network::Own(path));
    // One that belongs to a user namespace is made with that.
    let users = json!([ { "type": "user" }, { "type": "network", "path": "/run/netns/a" } ]);
    let users = guest(&json!({ "linux": { "namespaces": users } })).unwrap();
    let kept = serde_json::to_value(&users.spec).unwrap()["linux"]["namespaces"].clone();
    assert_eq!(kept, json!([ { "type": "user" }, { "type": "network" } ]));
}

/// Container `ebb`, of process 7.
struct Ebb {
    has_hosts_network: bool,
}

const EBB: Ebb = Ebb {
    has_hosts_network: false,
};

impl Neighbours for Ebb {
    fn any(&self) -> bool {
        true
    }

    fn machine_has_hosts_network(&self) -> bool {
        self.has_hosts_network
    }

    fn block_devices(&self) -> usize {
        3
    }

    fn owner(&self, _: LinuxNamespaceType, path: &Path) -> Option<String> {
        path.starts_with("/proc/7").then(|| "ebb".into())
    }
}

#[test]
fn a_namespace_of_a_neighbour_is_joined_by_its_name() {
    let joined = |network: Value| {
        let namespaces = json!([ { "type": "ipc", "path": "/proc/7/ns/ipc" }, network ]);
        let spec = spec(&json!({ "linux": { "namespaces": namespaces } }));
        let guest = translate(spec, "tide", Path::new("/share"), &EBB)?;
        let value = serde_json::to_value(&guest.spec).unwrap();
        let namespaces = &value["linux"]["namespaces"];
        assert_eq!(namespaces[0], json!({ "type": "ipc", "path": "ebb" }));
        Ok::<_, Unsupported>((namespaces[1].clone(), guest.network))
    };
    let shared = joined(json!({ "type": "network", "path": "/proc/7/ns/net" })).unwrap();
    let theirs = json!({ "type": "network", "path": "ebb" });
    assert_eq!(shared, (theirs, Network::Of("ebb".into())));
    // Own networks have their counterpart in the guest.
    let own = json!({ "type": "network" });
    let new = joined(own.clone()).unwrap();
    assert_eq!(new, (own.clone(), Network::Own(None)));
    let given = joined(json!({ "type": "network", "path": "/run/netns/a" })).unwrap();
    assert_eq!(given, (own, Network::Own(Some("/run/netns/a".into()))));
    let error = joined(json!({ "type": "uts", "path": "/proc/1/ns/uts" })).unwrap_err();
    assert!(error.to_string().contains("namespaces[uts].path"));
}

#[test]
fn the_hosts_own_network_is_the_machines_if_nobody_elses_is() {
    let spec = || spec(&json!({ "linux": { "namespaces": [ { "type": "pid" } ] } }));
    let asked = |guest: Result<Guest, Unsupported>| {
        let guest = guest.unwrap();
        let value = serde_json::to_value(&guest.spec).unwrap();
        (value["linux"]["namespaces"].clone(), guest.network)
    };
    let root = Path::new("/share");
    let pid = json!([ { "type": "pid" } ]);
    let own = json!([ { "type": "pid" }, { "type": "network" } ]);

    let first = asked(translate(spec(), "tide", root, &Nobody));
    assert_eq!(first, (pid.clone(), Network::Host));
    let beside = asked(translate(spec(), "tide", root, &EBB));
    assert_eq!(beside, (own, Network::Host));
    let ebb = Ebb {
        has_hosts_network: true,
    };
    let with = asked(translate(spec(), "tide", root, &ebb));
    assert_eq!(with, (pid, Network::Machine));
}

#[test]
fn how_soon_the_host_may_end_it_is_what_the_configuration_says_or_zero() {
    let with = |score: Value| {
        let process = json!({ "cwd": "/", "args": ["true"], "user": { "uid": 0, "gid": 0 },
            "oomScoreAdj": score });
        oom_score_adj(&spec(&json!({ "process": process })))
    };
    assert_eq!(with(json!(321)), Ok(321));
    assert_eq!(with(json!(-1000)), Ok(-1000));
    assert_eq!(with(Value::Null), Ok(0));
    assert_eq!(oom_score_adj(&spec(&json!({}))), Ok(0));
    let error = with(json!(1001)).unwrap_err().to_string();
    assert!(error.contains("oomScoreAdj 1001"), "{error}");
}

#[test]
fn privileged_ports_take_a_capability() {
    let with = |bounding: Value| {
        let process = json!({ "cwd": "/", "args": ["true"], "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": bounding } });
        may_bind_privileged_ports(&spec(&json!({ "process": process })))
    };
    assert!(with(json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"])));
    assert!(!with(json!(["CAP_CHOWN"])));
    assert!(!may_bind_privileged_ports(&spec(&json!({}))));
}

#[test]
fn a_container_that_joins_a_machine_may_have_a_network_of_its_own() {
    let is_own = |network: Value| {
        let spec = spec(&json!({ "linux": { "namespaces": [network] } }));
        let guest = translate(spec, "tide", Path::new("/share"), &EBB).unwrap();
        matches!(guest.network, Network::Own(_))
    };
    assert!(is_own(json!({ "type": "network" })));
    assert!(is_own(json!({ "type": "network", "path": "" })));
    assert!(!is_own(
        json!({ "type": "network", "path": "/proc/7/ns/net" })
    ));
    assert!(!is_own(json!({ "type": "ipc" })));
}

#[test]
fn bind_mounts_are_of_where_the_guest_finds_their_volumes() {
    let mut guest = guest(&json!({ "mounts": [
        { "destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro"] },
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/b", "source": "/host/b", "options": ["bind"] },
        { "destination": "/c", "source": "/host/c", "options": ["rbind", "rro"] },
    ] }))
    .unwrap();
    guest.place(["/share/7", "/share/3", "/share/5"].map(Into::into));
    let sources: Vec<_> = guest
        .spec
        .mounts()
        .iter()
        .flatten()
        .map(Mount::source)
        .collect();
    assert_eq!(
        sources,
        [
            &Some("/share/7".into()),
            &Some("tmpfs".into()),
            &Some("/share/3".into()),
            &Some("/share/5".into())
        ]
    );
    let volume = |source: &str, mount, both| Volume {
        source: source.into(),
        mount,
        manner: Manner {
            recursive: both,
            read_only: both,
            id_maps: None,
        },
    };
    assert_eq!(
        guest.volumes,
        [
            volume("/host/a", 0, true),
            volume("/host/b", 2, false),
            volume("/host/c", 3, true)
        ]
    );
}

#[test]
fn an_idmapped_mount_is_the_hosts_to_map() {
    let map = |host: u32| json!([ { "containerID": 0, "hostID": host, "size": 10 } ]);
    let mount = |more: &Value| {
        let mut mount = json!({ "destination": "/a", "type": "bind", "source": "/host/a",
                                "options": ["rbind", "ridmap"] });
        mount
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!([mount])
    };
    let own = mount(&json!({ "uidMappings": map(5), "gidMappings": map(6) }));
    let linux = json!({ "namespaces": [ { "type": "user" } ],
                        "uidMappings": map(7), "gidMappings": map(8) });

    let by_itself = guest(&json!({ "mounts": own })).unwrap();
    let by_container = guest(&json!({ "mounts": mount(&json!({})), "linux": linux })).unwrap();
    let by_nobody = guest(&json!({ "mounts": mount(&json!({})) })).unwrap_err();

    let hosts = |guest: &Guest| {
        let maps = guest.volumes[0].manner.id_maps.as_ref().unwrap();
        assert!(maps.recursive);
        (maps.users[0].host_id(), maps.groups[0].host_id())
    };
    assert_eq!((hosts(&by_itself), hosts(&by_container)), ((5, 6), (7, 8)));
    let left = serde_json::to_value(&by_itself.spec).unwrap()["mounts"][0].clone();
    assert_eq!(left.get("uidMappings"), None);
    assert_eq!(left["options"], json!(["rbind"]));
    assert_eq!(by_nobody.field, "mounts[].options[idmap]");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let linux = |inner: Value| json!({ "linux": inner });
    for (change, field) in [
        (
            json!({ "hooks": { "createContainer": [ { "path": "/bin/x" } ] } }),
            "hooks.createContainer",
        ),
        (
            linux(json!({ "namespaces": [ { "type": "ipc", "path": "/proc/7/ns/ipc" } ] })),
            "linux.namespaces[ipc].path",
        ),
        (
            linux(
                json!({ "devices": [ { "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 } ] }),
            ),
            "linux.devices[/dev/kmsg]",
        ),
        (
            linux(json!({ "netDevices": { "eth0": { "name": "tide0" } } })),
            "linux.netDevices",
        ),
        (
            linux(json!({ "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } })),
            "linux.seccomp.defaultAction",
        ),
        (
            linux(
                json!({ "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                { "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" } ] } }),
            ),
            "linux.seccomp.syscalls[].action",
        ),
        (
            linux(json!({ "namespaces": [ { "type": "ipc" }, { "type": "ipc" } ] })),
            "linux.namespaces[ipc]",
        ),
        (
            linux(
                json!({ "resources": { "blockIO": { "throttleReadBpsDevice": [
                { "major": 254, "minor": 0, "rate": 1 } ] } } }),
            ),
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            linux(json!({ "resources": { "network": { "classID": 7 } } })),
            "linux.resources.network",
        ),
        (
            json!({ "mounts": [ { "destination": "/a", "options": [ "bind" ] } ] }),
            "mounts[].source",
        ),
    ] {
        let error = guest(&change).unwrap_err();
        assert_eq!(error.field, field, "{change}");
    }
}

#[test]
fn the_hosts_processes_are_refused_with_what_to_do() {
    for namespaces in [json!([]), json!([{ "type": "ipc" }])] {
        let spec = spec(&json!({ "linux": { "namespaces": namespaces } }));
        let error = check_has_pids(&spec).unwrap_err().to_string();
        for words in [
            "--pid host",
            "not supported",
            "--pid container:NAME",
            "host_pid",
        ] {
            assert!(error.contains(words), "{error}");
        }
        // docker makes exit codes of these words.
        for words in ["no such file", "not found", "permission denied"] {
            assert!(!error.contains(words), "{error}");
        }
    }
    for namespace in [
        json!({ "type": "pid" }),
        json!({ "type": "pid", "path": "/proc/7/ns/pid" }),
    ] {
        let spec = spec(&json!({ "linux": { "namespaces": [namespace] } }));
        assert_eq!(check_has_pids(&spec), Ok(()));
    }
}

#[test]
fn empty_hooks_and_virtual_devices_are_fine() {
    let change = json!({
        "hooks": {},
        "linux": { "devices": [ { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 } ] },
    });
    assert!(guest(&change).is_ok());
}

#[test]
fn an_added_process_loses_its_labels_and_has_the_requests_terminal() {
    let process = json!({ "cwd": "/", "args": ["true"], "user": { "uid": 7, "gid": 7 },
                          "apparmorProfile": "docker-default", "noNewPrivileges": true });
    let translated = translate_process(process.to_string().as_bytes(), true).unwrap();
    let translated: Value = serde_json::from_slice(&translated).unwrap();
    assert_eq!(translated.get("apparmorProfile"), None);
    assert_eq!(translated["noNewPrivileges"], true);
    assert_eq!(translated["terminal"], true);
    assert_eq!(translated["user"]["uid"], 7);
}

#[test]
fn objects_of_requests_are_checked() {
    let resources = read_resources(b"{ \"memory\": { \"limit\": 4096 } }").unwrap();
    let limit = resources.memory().as_ref().unwrap().limit();
    assert_eq!(limit, Some(4096));
    assert!(read_resources(b"{ \"memory\": 7 }").is_err());
    assert!(translate_process(b"", false).is_err());
}

#[test]
fn a_corrupt_file_is_named_with_the_place() {
    let bundle = tempfile::tempdir().unwrap();
    let load_text = |text: &str| {
        std::fs::write(bundle.path().join("config.json"), text).unwrap();
        load(bundle.path()).unwrap_err().to_string()
    };
    for (text, reason) in [
        ("{ \"ociVersion\": ", "line 1"),
        ("{}", "no process"),
        ("[]", "no process"),
        ("7", "invalid"),
        ("{ \"ociVersion\": 7 }", "invalid type"),
    ] {
        let error = load_text(text);
        assert!(
            error.contains("config.json") && error.contains(reason),
            "{error}"
        );
    }
}

#[test]
fn what_is_relative_is_in_the_bundle_and_what_is_unknown_is_forgotten() {
    let bundle = tempfile::tempdir().unwrap();
    let caps = json!({ "bounding": [ "CAP_KILL", "CAP_OF_THE_FUTURE" ] });
    let text = serde_json::to_string(&spec(&json!({ "mounts": [
        { "destination": "/a", "source": "a", "options": [ "bind" ] },
        { "destination": "/b", "source": "/b", "options": [ "rbind" ] },
        { "destination": "/c", "source": "tmpfs", "type": "tmpfs" },
    ] })));
    let mut json: Value = serde_json::from_str(&text.unwrap()).unwrap();
    json["process"]["capabilities"] = caps;
    std::fs::write(bundle.path().join("config.json"), json.to_string()).unwrap();

    let spec = load(bundle.path()).unwrap();

    let sources = spec.mounts().iter().flatten().map(Mount::source);
    let sources: Vec<PathBuf> = sources.flatten().cloned().collect();
    let in_bundle = bundle.path().join("a");
    assert_eq!(sources, [in_bundle, "/b".into(), "tmpfs".into()]);
    let kept = spec.process().clone().unwrap().capabilities().clone();
    assert_eq!(kept.unwrap().bounding(), &Some([Capability::Kill].into()));
}

#[test]
fn the_root_is_the_bundles_unless_nothing_was_mounted() {
    let spec = spec(&json!({ "root": { "path": "/srv/root" } }));
    assert_eq!(
        host_root(&spec, Path::new("/b"), true),
        Path::new("/b/rootfs")
    );
    assert_eq!(
        host_root(&spec, Path::new("/b"), false),
        Path::new("/srv/root")
    );
}

#[test]
fn a_file_system_on_a_block_device_is_a_disk() {
    let mounts = json!([
        { "destination": "/a", "type": "ext4", "source": "/dev/loop0", "options": ["ro"] },
        { "destination": "/tmp", "type": "tmpfs", "source": "/somewhere" },
        { "destination": "/b", "type": "xfs", "source": "/dev/loop1" },
    ]);

    let guest = guest(&json!({ "mounts": mounts })).unwrap();

    let volume = |source: &str, serial: &str, read_only| BlockVolume {
        source: BlockSource::Path(source.into()),
        serial: serial.into(),
        read_only,
    };
    assert_eq!(
        guest.block_volumes,
        [
            volume("/dev/loop0", "volume0", true),
            volume("/dev/loop1", "volume1", false)
        ]
    );
    let sources = guest.spec.mounts().iter().flatten().map(Mount::source);
    let sources: Vec<_> = sources.flatten().collect();
    assert_eq!(sources[0], Path::new("/dev/disk/by-id/virtio-volume0"));
    assert_eq!(sources[1], Path::new("/somewhere"));
}

#[test]
fn a_file_system_of_the_hosts_kernel_is_refused() {
    let mounts = json!([{ "destination": "/a", "type": "overlay", "source": "overlay" }]);

    let error = guest(&json!({ "mounts": mounts })).unwrap_err();

    assert_eq!(error.field, "mounts[].type[overlay]");
}

#[test]
fn a_block_device_of_the_host_is_a_disk_as_writable_as_the_container_may_use_it() {
    let device = json!({ "path": "/dev/data", "type": "b", "major": 8, "minor": 16 });
    let with = |access: &str| {
        let linux = json!({ "devices": [device],
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "b", "major": 8, "minor": 16, "access": access } ] } });
        guest(&json!({ "linux": linux })).unwrap()
    };
    let disk = |read_only| BlockVolume {
        source: BlockSource::Number {
            major: 8,
            minor: 16,
        },
        serial: "volume0".into(),
        read_only,
    };
    assert_eq!(with("rwm").block_volumes, [disk(false)]);
    assert_eq!(with("r").block_volumes, [disk(true)]);
    assert_eq!(with("r").disks["/dev/data"], "volume0");
}

#[test]
fn a_container_that_may_use_all_devices_gets_the_guests() {
    let linux = json!({
        "devices": [
            { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 },
            { "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 },
            { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
        ],
        "resources": { "devices": [ { "allow": true, "access": "rwm" } ] },
    });
    let guest = guest(&json!({ "linux": linux })).unwrap();
    let value = serde_json::to_value(&guest.spec).unwrap();
    let devices = value["linux"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!(devices[0]["path"], "/dev/fuse");
    assert!(guest.block_volumes.is_empty());
}
