//! A bundle's configuration, and what of it goes into the guest.
//!
//! Translation is pure: a specification of the host's becomes one of the guest's and a list of what
//! the host has to share. What the guest cannot honour is refused by its field's name; what has no
//! meaning there is dropped, and the reason stands beside it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use log::warn;
use oci_spec::runtime::{
    Capability, Linux, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use serde::Deserialize;
use serde_json::Value;

use crate::hooks::Hooks;
use crate::idmap::IdMaps;
use crate::state_dir::Sharing;

/// Larger configurations are not read: containerd's are a few KiB.
const MAX_CONFIG: u64 = 16 << 20;

/// Why a bundle is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("{} exceeds {MAX_CONFIG} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// It is no OCI runtime configuration.
    #[error("{} is no OCI runtime configuration: {reason}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where, on one line.
        reason: String,
    },
}

/// A field that a virtual machine, or Hull as it is, cannot honour (docs/limits.md).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is not supported: {reason}")]
pub struct Unsupported {
    field: String,
    reason: &'static str,
}

impl Unsupported {
    /// The configuration's `field` cannot be honoured.
    pub(crate) fn new(field: &str, reason: &'static str) -> Self {
        Self {
            field: field.to_owned(),
            reason,
        }
    }
}

/// Something of the host's that the guest mounts.
#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    /// Path on the host: a directory or a single file.
    pub source: PathBuf,
    /// Name below the container's `mounts` directory on the share.
    pub name: String,
    /// What of it is shared, and how.
    pub sharing: Sharing,
}

/// What a container becomes in its guest.
#[derive(Debug, PartialEq)]
pub struct Guest {
    /// The configuration for the agent.
    pub spec: Spec,
    /// What its bind mounts are backed by, in their order.
    pub volumes: Vec<Volume>,
    /// The namespace of the host that the machine's network is, if it exists already.
    pub network_namespace: Option<PathBuf>,
    /// What runs on the host.
    pub hooks: Hooks,
}

/// Reads `config.json` of the bundle.
///
/// # Errors
/// When it is missing, too large or no configuration.
pub fn load(bundle: &Path) -> Result<Spec, BundleError> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut text));
    if let Err(source) = read {
        return Err(BundleError::Read { path, source });
    }
    if text.len() as u64 > MAX_CONFIG {
        return Err(BundleError::TooLarge { path });
    }
    let corrupt = |reason| BundleError::Corrupt {
        path: path.clone(),
        reason,
    };
    let mut json: Value = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    forget_unknown_capabilities(&mut json["process"]);
    spell_scheduler_flags(&mut json["process"]);
    let mut spec: Spec = serde_json::from_value(json).map_err(|e| corrupt(e.to_string()))?;
    let mounts = spec.mounts_mut().iter_mut().flatten();
    for mount in mounts.filter(|mount| is_bind(mount)) {
        // A path relative to the bundle, unless it is absolute.
        let source = mount.source().as_ref().map(|source| bundle.join(source));
        mount.set_source(source);
    }
    match &spec {
        spec if spec.process().is_none() => Err(corrupt("it has no process".into())),
        spec if spec.root().is_none() => Err(corrupt("it has no root".into())),
        _ => Ok(spec),
    }
}

/// Spells the scheduler's flags as the library does that reads them, which has two of them wrong.
fn spell_scheduler_flags(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags");
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// Drops the capabilities that no kernel of ours has. They are no errors: an engine lists what its
/// own kernel knows (OCI runtime-spec 1.2, config.md "Linux Process").
fn forget_unknown_capabilities(process: &mut Value) {
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for names in sets
        .into_iter()
        .flat_map(serde_json::Map::values_mut)
        .filter_map(Value::as_array_mut)
    {
        names.retain(|name| {
            let known = Capability::deserialize(name).is_ok();
            if !known {
                warn!("process.capabilities: the guest has no {name}");
            }
            known
        });
    }
}

/// The root file system on the host: what containerd mounted in the bundle, or, when it mounted
/// nothing, what the configuration names.
#[must_use]
pub fn host_root(spec: &Spec, bundle: &Path, mounted: bool) -> PathBuf {
    match spec.root() {
        Some(root) if !mounted => bundle.join(root.path()),
        _ => bundle.join("rootfs"),
    }
}

/// Translates the configuration of container `id`, which the guest finds on its share at `share`.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn translate(mut spec: Spec, id: &str, share: &Path) -> Result<Guest, Unsupported> {
    let base = share.join(id);
    let hooks = Hooks::take(&mut spec)?;
    if let Some(root) = spec.root_mut() {
        root.set_path(base.join("rootfs"));
    }
    if let Some(process) = spec.process_mut() {
        drop_labels(process);
    }
    let mut network_namespace = None;
    let container_maps = spec.linux().as_ref().and_then(id_maps_of);
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(None);
        if linux.intel_rdt().is_some() {
            return unsupported(
                "linux.intelRdt",
                "the guest's processor has no such resources",
            );
        }
        let (namespaces, network) = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
        linux.set_namespaces(Some(namespaces));
        network_namespace = network;
        for device in linux.devices().iter().flatten() {
            check_device(device)?;
        }
        if let Some(resources) = linux.resources() {
            check_limits(resources)?;
        }
        // The guest's cgroups are its own: names of the host's, systemd's slices among them, mean
        // nothing there.
        linux.set_cgroups_path(Some(Path::new("/hull").join(id)));
    }
    let mut volumes = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if let Some(volume) = volume(mount, volumes.len(), container_maps.as_ref())? {
            mount.set_source(Some(base.join("mounts").join(&volume.name)));
            volumes.push(volume);
        }
    }
    Ok(Guest {
        spec,
        volumes,
        network_namespace,
        hooks,
    })
}

/// A JSON object of a request that is none.
#[derive(Debug, thiserror::Error)]
#[error("the request holds no OCI {what} object")]
pub struct Malformed {
    what: &'static str,
    #[source]
    source: serde_json::Error,
}

/// Translates the `process` object of an added process; whether it has a terminal is the request's
/// to say, as with runc's shim.
///
/// # Errors
/// When it is none.
pub fn translate_process(json: &[u8], terminal: bool) -> Result<Vec<u8>, Malformed> {
    let malformed = |source| Malformed {
        what: "process",
        source,
    };
    let mut process: Value = serde_json::from_slice(json).map_err(malformed)?;
    forget_unknown_capabilities(&mut process);
    spell_scheduler_flags(&mut process);
    let mut process: Process = serde_json::from_value(process).map_err(malformed)?;
    drop_labels(&mut process);
    process.set_terminal(Some(terminal));
    serde_json::to_vec(&process).map_err(malformed)
}

/// Checks a `linux.resources` object.
///
/// # Errors
/// When it is none.
pub fn check_resources(json: &[u8]) -> Result<Vec<u8>, Malformed> {
    let checked: Result<LinuxResources, _> = serde_json::from_slice(json);
    match checked {
        Ok(_) => Ok(json.to_owned()),
        Err(source) => Err(Malformed {
            what: "linux.resources",
            source,
        }),
    }
}

/// Drops the labels of modules that the guest's kernel does not have.
fn drop_labels(process: &mut Process) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

/// The namespaces that the guest makes, and the path of the network's.
fn namespaces(
    asked: &[LinuxNamespace],
) -> Result<(Vec<LinuxNamespace>, Option<PathBuf>), Unsupported> {
    let mut kept: Vec<LinuxNamespace> = Vec::new();
    let mut network = None;
    for (number, namespace) in asked.iter().enumerate() {
        if asked[..number].iter().any(|n| n.typ() == namespace.typ()) {
            return unsupported(
                &format!("linux.namespaces[{}]", namespace.typ()),
                "there is one of this type already",
            );
        }
        let path = namespace
            .path()
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        match namespace.typ() {
            // The machine is one: its interfaces are the container's.
            LinuxNamespaceType::Network => network = path,
            typ if path.is_some() => {
                return unsupported(
                    &format!("linux.namespaces[{typ}].path"),
                    "a namespace of the host cannot be joined from a virtual machine",
                );
            }
            _ => kept.push(namespace.clone()),
        }
    }
    Ok((kept, network))
}

fn has_option(mount: &Mount, wanted: &str) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| option == wanted)
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || has_option(mount, "bind")
        || has_option(mount, "rbind")
}

/// What `mount` needs of the host, if anything. What the host does is taken out of it.
fn volume(
    mount: &mut Mount,
    number: usize,
    container: Option<&Maps>,
) -> Result<Option<Volume>, Unsupported> {
    if has_option(mount, "tmpcopyup") {
        return unsupported(
            "mounts[].options[tmpcopyup]",
            "it comes with a later version",
        );
    }
    let id_maps = id_maps(mount, container)?;
    if !is_bind(mount) {
        return match id_maps {
            None => Ok(None),
            Some(_) => unsupported("mounts[].uidMappings", "only bind mounts can be idmapped"),
        };
    }
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return unsupported("mounts[].source", "a bind mount needs a source");
    }
    let sharing = Sharing {
        recursive: !has_option(mount, "bind") || has_option(mount, "rbind"),
        read_only: has_option(mount, "ro"),
        id_maps,
    };
    let options = mount.options().iter().flatten();
    let for_guest = options.filter(|it| !matches!(it.as_str(), "idmap" | "ridmap"));
    let for_guest = for_guest.cloned().collect();
    mount
        .set_options(Some(for_guest))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    Ok(Some(Volume {
        source,
        name: number.to_string(),
        sharing,
    }))
}

/// Maps of users and of groups.
type Maps = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// Which ids `mount` maps, by its own maps or those of the container's user namespace.
fn id_maps(mount: &Mount, container: Option<&Maps>) -> Result<Option<IdMaps>, Unsupported> {
    let own = match (mount.uid_mappings().clone(), mount.gid_mappings().clone()) {
        (None, None) => None,
        (Some(users), Some(groups)) => Some((users, groups)),
        _ => {
            return unsupported(
                "mounts[].uidMappings",
                "it comes with gidMappings or not at all",
            );
        }
    };
    let recursive = has_option(mount, "ridmap");
    if own.is_none() && !recursive && !has_option(mount, "idmap") {
        return Ok(None);
    }
    let Some((users, groups)) = own.or_else(|| container.cloned()) else {
        return unsupported(
            "mounts[].options[idmap]",
            "neither the mount nor a user namespace says which ids to map",
        );
    };
    Ok(Some(IdMaps {
        users,
        groups,
        recursive,
    }))
}

/// The maps of a container's user namespace.
fn id_maps_of(linux: &Linux) -> Option<Maps> {
    Some((linux.uid_mappings().clone()?, linux.gid_mappings().clone()?))
}

/// Devices that are the same in every kernel may be made in the guest; those of the host's hardware
/// are not there.
fn check_device(device: &LinuxDevice) -> Result<(), Unsupported> {
    /// Major and minor of null, zero, full, random, urandom, tty, console, ptmx, tun and fuse.
    const VIRTUAL: [(i64, i64); 10] = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
        (10, 200),
        (10, 229),
    ];
    if !device.path().starts_with("/dev") {
        return unsupported(
            &format!("linux.devices[{}]", device.path().display()),
            "devices outside /dev come with a later version",
        );
    }
    let known = VIRTUAL.contains(&(device.major(), device.minor()))
        && matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
    if known || device.typ() == LinuxDeviceType::P {
        return Ok(());
    }
    unsupported(
        &format!("linux.devices[{}]", device.path().display()),
        "the host's devices are not in the virtual machine",
    )
}

/// Limits for devices of the host, which are not there, and for controllers that cgroup v2 does not
/// have, as the guest's cgroups are of that version.
fn check_limits(resources: &LinuxResources) -> Result<(), Unsupported> {
    if let Some(io) = resources.block_io() {
        for (name, is_set) in [
            ("weightDevice", !none(io.weight_device())),
            (
                "throttleReadBpsDevice",
                !none(io.throttle_read_bps_device()),
            ),
            (
                "throttleWriteBpsDevice",
                !none(io.throttle_write_bps_device()),
            ),
            (
                "throttleReadIOPSDevice",
                !none(io.throttle_read_iops_device()),
            ),
            (
                "throttleWriteIOPSDevice",
                !none(io.throttle_write_iops_device()),
            ),
        ] {
            if is_set {
                return unsupported(
                    &format!("linux.resources.blockIO.{name}"),
                    "the host's devices are not in the virtual machine",
                );
            }
        }
    }
    if let Some(network) = resources.network()
        && (network.class_id().is_some() || !none(network.priorities()))
    {
        return unsupported("linux.resources.network", "cgroup v2 has no such limits");
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        return unsupported(
            "linux.resources.rdma",
            "the host's devices are not in the virtual machine",
        );
    }
    Ok(())
}

fn none<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn unsupported<T>(field: &str, reason: &'static str) -> Result<T, Unsupported> {
    Err(Unsupported::new(field, reason))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
        translate(spec(change), "tide", Path::new("/share"))
    }

    #[test]
    fn paths_cgroup_and_labels_are_the_guests() {
        let guest = guest(&json!({})).unwrap();
        let value = serde_json::to_value(&guest.spec).unwrap();
        assert_eq!(
            value["root"],
            json!({ "path": "/share/tide/rootfs", "readonly": true })
        );
        assert_eq!(value["linux"]["cgroupsPath"], "/hull/tide");
        assert_eq!(value["process"].get("apparmorProfile"), None);
        assert_eq!(value["process"].get("selinuxLabel"), None);
        assert_eq!(value["mounts"][0]["source"], "proc");
    }

    #[test]
    fn the_network_namespace_is_the_machine() {
        let namespaces = |network: Value| json!({ "linux": { "namespaces": [ { "type": "pid" }, { "type": "ipc" }, network ] } });
        let new = guest(&namespaces(json!({ "type": "network" }))).unwrap();
        assert_eq!(new.network_namespace, None);
        let kept = serde_json::to_value(&new.spec).unwrap()["linux"]["namespaces"].clone();
        assert_eq!(kept, json!([ { "type": "pid" }, { "type": "ipc" } ]));

        let given = guest(&namespaces(
            json!({ "type": "network", "path": "/run/netns/a" }),
        ));
        assert_eq!(
            given.unwrap().network_namespace,
            Some("/run/netns/a".into())
        );
    }

    #[test]
    fn bind_mounts_move_to_the_share() {
        let guest = guest(&json!({ "mounts": [
            { "destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/b", "source": "/host/b", "options": ["bind"] },
        ] }))
        .unwrap();
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
                &Some("/share/tide/mounts/0".into()),
                &Some("tmpfs".into()),
                &Some("/share/tide/mounts/1".into())
            ]
        );
        let volume = |source: &str, name: &str, both| Volume {
            source: source.into(),
            name: name.into(),
            sharing: Sharing {
                recursive: both,
                read_only: both,
                id_maps: None,
            },
        };
        assert_eq!(
            guest.volumes,
            [volume("/host/a", "0", true), volume("/host/b", "1", false)]
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
            let maps = guest.volumes[0].sharing.id_maps.as_ref().unwrap();
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
                    json!({ "devices": [ { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 } ] }),
                ),
                "linux.devices[/dev/sda]",
            ),
            (
                linux(json!({ "namespaces": [ { "type": "ipc" }, { "type": "ipc" } ] })),
                "linux.namespaces[ipc]",
            ),
            (
                linux(
                    json!({ "devices": [ { "path": "/srv/null", "type": "c", "major": 1, "minor": 3 } ] }),
                ),
                "linux.devices[/srv/null]",
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
            (
                json!({ "mounts": [ { "destination": "/a", "type": "tmpfs", "options": [ "tmpcopyup" ] } ] }),
                "mounts[].options[tmpcopyup]",
            ),
        ] {
            let error = guest(&change).unwrap_err();
            assert_eq!(error.field, field, "{change}");
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
        assert!(check_resources(b"{ \"memory\": { \"limit\": 4096 } }").is_ok());
        assert!(check_resources(b"{ \"memory\": 7 }").is_err());
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
}
