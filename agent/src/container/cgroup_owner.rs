//! Whose a container's cgroup is (OCI runtime-spec 1.2, config-linux.md "Cgroup ownership"). Pure.
//!
//! Who sees the cgroup as the root of all, and may write there, is to be able to: systemd in a container
//! with a user namespace makes its services' cgroups in it.

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Mount, Process};

use super::mounts::is_read_only;
use super::user_namespace::IdMaps;

/// The machine's user to give the cgroup to: the one that the process runs as, if the container has a
/// cgroup namespace of its own and the cgroup is mounted writable. Root has it as it is.
pub fn of(
    process: &Process,
    linux: &Linux,
    mounts: &[Mount],
    id_maps: Option<&IdMaps>,
) -> Option<u32> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let is_shown = mounts.iter().any(is_writable_cgroup);
    if !is_shown || !namespaces.any(is_own_cgroup) {
        return None;
    }
    let uid = process.user().uid();
    let uid = match id_maps {
        Some(maps) => maps.of_the_machine(uid, 0)?.0,
        None => uid,
    };
    (uid != 0).then_some(uid)
}

fn is_own_cgroup(namespace: &LinuxNamespace) -> bool {
    let path = namespace.path().as_ref();
    namespace.typ() == LinuxNamespaceType::Cgroup
        && path.is_none_or(|path| path.as_os_str().is_empty())
}

fn is_writable_cgroup(mount: &Mount) -> bool {
    let is_cgroup = matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"));
    is_cgroup && !is_read_only(mount.options().as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn owner(uid: u32, namespace: &Value, mount: &Value, id_maps: Option<&IdMaps>) -> Option<u32> {
        let user = json!({ "uid": uid, "gid": 0 });
        let process = json!({ "cwd": "/", "args": ["sh"], "user": user });
        let linux = json!({ "namespaces": [{ "type": "pid" }, namespace] });
        of(
            &serde_json::from_value(process).unwrap(),
            &serde_json::from_value(linux).unwrap(),
            &[serde_json::from_value(mount.clone()).unwrap()],
            id_maps,
        )
    }

    #[test]
    fn a_cgroup_that_is_the_containers_to_write_is_its_users() {
        let map = json!([{ "containerID": 0, "hostID": 7000, "size": 10 }]);
        let map = serde_json::from_value(map).unwrap();
        let maps = IdMaps::new(Some(&map), Some(&map)).unwrap();
        let (own, other) = (json!({ "type": "cgroup" }), json!({ "type": "ipc" }));
        let joined = json!({ "type": "cgroup", "path": "/proc/7/ns/cgroup" });
        let cgroup =
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["rw"] });
        let mut read_only = cgroup.clone();
        read_only["options"] = json!(["ro"]);
        let elsewhere = json!({ "destination": "/sys/fs/cgroup", "type": "tmpfs" });

        assert_eq!(owner(0, &own, &cgroup, Some(&maps)), Some(7000));
        assert_eq!(owner(3, &own, &cgroup, Some(&maps)), Some(7003));
        assert_eq!(owner(3, &own, &cgroup, None), Some(3));
        assert_eq!(owner(0, &own, &cgroup, None), None);
        assert_eq!(owner(10, &own, &cgroup, Some(&maps)), None);
        for (namespace, mount) in [
            (&other, &cgroup),
            (&joined, &cgroup),
            (&own, &read_only),
            (&own, &elsewhere),
        ] {
            assert_eq!(owner(0, namespace, mount, Some(&maps)), None);
        }
    }
}
