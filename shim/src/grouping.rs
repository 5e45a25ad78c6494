//! Which shim serves a container: one of its own, or that of a sandbox which runs already.
//!
//! Containers that share a namespace are in one machine. Kubernetes' runtimes name the pod's sandbox
//! in an annotation. With Docker, nerdctl and Podman a namespace's path tells: it is
//! `/proc/PID/ns/TYPE` of a process that containerd was told of, or where the network namespace of
//! a sandbox is mounted. A sandbox of another containerd, or of another namespace of it, is never joined, and
//! its network is left to it: a second cable to an interface would cut the first.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::instance::{InUse, Instance};
use crate::socket;
use crate::state_dir::{StateDir, StateError};

/// Annotations that say whether a container is one of a pod, and of which: containerd's CRI plug-in
/// and CRI-O. The pod's first container is its `sandbox`.
const PODS: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// Why a container cannot join its sandbox.
#[derive(Debug, thiserror::Error)]
pub enum GroupingError {
    /// It is not there.
    #[error("the container belongs to pod sandbox {0:?}, which does not run on Hull")]
    NoSandbox(String),
    /// Namespaces of two machines.
    #[error(
        "linux.namespaces[{kind}].path: it belongs to another virtual machine than the other namespaces \
         that the container joins; join those of one machine's containers"
    )]
    TwoMachines {
        /// The type of one of them.
        kind: LinuxNamespaceType,
    },
    /// The network of a machine that it is not in.
    #[error(
        "linux.namespaces[network].path: {} is the network of {sandbox} (containerd namespace/container), whose virtual \
         machine this container cannot join; run it in that containerd namespace, or in a network of its own",
        path.display()
    )]
    OthersNetwork {
        /// The namespace.
        path: PathBuf,
        /// Whose it is.
        sandbox: String,
    },
    /// It is another containerd's.
    #[error(transparent)]
    InUse(#[from] InUse),
    /// Its name.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The sandbox that a container of `instance` with this configuration joins, if it joins one.
///
/// # Errors
/// When the sandbox that it names is not there, or it names two.
pub fn sandbox(
    spec: &Spec,
    state: &Path,
    namespace: &str,
    instance: &Instance,
) -> Result<Option<StateDir>, GroupingError> {
    if let Some(id) = pod(spec) {
        let sandbox = StateDir::at(state, namespace, id)?;
        sandbox.check_is_of(instance)?;
        return match sandbox.address() {
            Some(_) => Ok(Some(sandbox)),
            None => Err(GroupingError::NoSandbox(id.to_owned())),
        };
    }
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    let named = namespaces.into_iter().flatten().filter_map(|namespace| {
        let path = namespace.path().as_deref()?;
        Some((namespace.typ(), path))
    });
    let named: Vec<_> = named.collect();
    if named.is_empty() {
        return Ok(None);
    }
    let mut joined = None;
    for sandbox in StateDir::all(state, namespace) {
        if sandbox.address().is_none() || sandbox.check_is_of(instance).is_err() {
            continue;
        }
        let processes = sandbox.processes();
        let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
        let mut owned = named.iter();
        if let Some((kind, _)) = owned.find(|(kind, path)| owner(*kind, path, &pids).is_some()) {
            if joined.is_some() {
                return Err(GroupingError::TwoMachines { kind: *kind });
            }
            joined = Some(sandbox);
        }
    }
    Ok(joined)
}

/// Refuses a network namespace that another machine is connected to, whatever containerd namespace its containers are
/// in. `own` is that of the machine which the container is in, or is to be.
///
/// # Errors
/// When there is one whose shim serves it.
pub fn check_is_free(path: &Path, state: &Path, own: &StateDir) -> Result<(), GroupingError> {
    let has = |sandbox: &StateDir| {
        let processes = sandbox.processes();
        let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
        let is_in = owner(LinuxNamespaceType::Network, path, &pids).is_some();
        // What a shim has left that was killed connects nobody.
        is_in && sandbox.address().is_some_and(|it| socket::is_served(&it))
    };
    let mut others = StateDir::everywhere(state).into_iter();
    match others.find(|sandbox| sandbox.path() != own.path() && has(sandbox)) {
        None => Ok(()),
        Some(sandbox) => Err(GroupingError::OthersNetwork {
            path: path.to_owned(),
            sandbox: sandbox.name(),
        }),
    }
}

/// The process, of those given, whose namespace the path names.
#[must_use]
pub fn owner(kind: LinuxNamespaceType, path: &Path, pids: &[u32]) -> Option<u32> {
    if let Some((pid, file)) = process_of(path) {
        // A type is written as its file is called (namespaces(7)).
        let is_of_kind = file == kind.to_string();
        if is_of_kind && pids.contains(&pid) {
            return Some(pid);
        }
    }
    // Only a network's has other paths, too: the machine, or a container's process, is in it.
    if kind != LinuxNamespaceType::Network {
        return None;
    }
    let inode = |path: &Path| {
        let file = fs::metadata(path).ok()?;
        Some((file.dev(), file.ino()))
    };
    let asked = inode(path)?;
    if inode(Path::new("/proc/self/ns/net")) == Some(asked) {
        return None;
    }
    pids.iter()
        .copied()
        .find(|pid| inode(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(asked))
}

/// PID and FILE of `/proc/PID/ns/FILE`.
fn process_of(path: &Path) -> Option<(u32, &str)> {
    let (pid, file) = path.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    Some((pid.parse().ok()?, file))
}

/// The pod sandbox that the container is to be in; none for the sandbox's own container.
fn pod(spec: &Spec) -> Option<&str> {
    let annotations = spec.annotations().as_ref()?;
    PODS.iter().find_map(|(kind, sandbox)| {
        let member = annotations
            .get(*kind)
            .is_some_and(|kind| kind == "container");
        annotations
            .get(*sandbox)
            .filter(|_| member)
            .map(String::as_str)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: &Value) -> Spec {
        let mut value = json!({ "ociVersion": "1.2.0" });
        for (key, new) in change.as_object().unwrap() {
            value[key] = new.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn containerd(name: &str) -> Instance {
        let (address, bundle) = (format!("/run/{name}.sock"), format!("/run/{name}/tide"));
        Instance::new(&address, Path::new(&bundle))
    }

    /// A sandbox `tide` that runs: its process is this test.
    fn running() -> (tempfile::TempDir, StateDir) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path(), "sea", "tide").unwrap();
        state.create().unwrap();
        state.note_process(std::process::id()).unwrap();
        state.note_address("unix:///tide").unwrap();
        (root, state)
    }

    fn joined(root: &tempfile::TempDir, namespace: &str, spec: &Spec) -> Option<String> {
        let sandbox = sandbox(spec, root.path(), namespace, &containerd("one")).unwrap();
        sandbox.map(|sandbox| sandbox.address().unwrap())
    }

    #[test]
    fn a_path_of_a_sandboxs_process_leads_to_its_shim() {
        let (root, _state) = running();
        let own = std::process::id();
        let with = |path: String| {
            spec(&json!({ "linux": { "namespaces": [{ "type": "mount" },
                { "type": "ipc", "path": path }] } }))
        };
        let here = with(format!("/proc/{own}/ns/ipc"));
        assert_eq!(joined(&root, "sea", &here).unwrap(), "unix:///tide");
        assert_eq!(joined(&root, "lake", &here), None);
        let of_another_type = with(format!("/proc/{own}/ns/uts"));
        assert_eq!(joined(&root, "sea", &of_another_type), None);
        assert_eq!(joined(&root, "sea", &with("/proc/1/ns/ipc".into())), None);
        assert_eq!(joined(&root, "sea", &with("/run/ipc".into())), None);
    }

    #[test]
    fn namespaces_of_two_machines_cannot_be_joined_at_once() {
        let (root, _state) = running();
        let mut sleeper = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let other = StateDir::at(root.path(), "sea", "ebb").unwrap();
        other.create().unwrap();
        other.note_process(sleeper.id()).unwrap();
        other.note_address("unix:///ebb").unwrap();

        let both = spec(&json!({ "linux": { "namespaces": [
            { "type": "ipc", "path": format!("/proc/{}/ns/ipc", std::process::id()) },
            { "type": "uts", "path": format!("/proc/{}/ns/uts", sleeper.id()) },
        ] } }));
        let error = sandbox(&both, root.path(), "sea", &containerd("one")).unwrap_err();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();

        assert!(
            matches!(error, GroupingError::TwoMachines { .. }),
            "{error}"
        );
    }

    #[test]
    fn the_hosts_own_network_is_nobodys() {
        let own = std::process::id();
        let network = LinuxNamespaceType::Network;
        let host = Path::new("/proc/self/ns/net");
        assert_eq!(owner(network, host, &[own]), None);
        let by_pid = format!("/proc/{own}/ns/net");
        assert_eq!(owner(network, Path::new(&by_pid), &[own]), Some(own));
    }

    #[test]
    fn a_machine_of_another_containerd_is_not_joined() {
        let (root, state) = running();
        state.note_instance(&containerd("another")).unwrap();
        let path = format!("/proc/{}/ns/ipc", std::process::id());
        let by_path = json!({ "linux": { "namespaces": [{ "type": "ipc", "path": path }] } });
        assert_eq!(joined(&root, "sea", &spec(&by_path)), None);
        let pod = json!({ "annotations": { "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "tide" } });
        let error = sandbox(&spec(&pod), root.path(), "sea", &containerd("one")).unwrap_err();
        assert!(error.to_string().contains("/run/another.sock"), "{error}");
    }

    #[test]
    fn the_network_of_a_machine_that_is_not_joined_is_left_to_it() {
        let (root, state) = running();
        let socket = root.path().join("shim.sock");
        let shim = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        state.note_address(&address).unwrap();
        let network = PathBuf::from(format!("/proc/{}/ns/net", std::process::id()));
        let ebb = StateDir::at(root.path(), "lake", "ebb").unwrap();
        let check = |own| check_is_free(&network, root.path(), own);

        let error = check(&ebb).unwrap_err().to_string();
        assert!(error.contains("sea/tide"), "{error}");
        check(&state).unwrap();
        let free = check_is_free(Path::new("/proc/1/ns/net"), root.path(), &ebb);
        free.unwrap();
        // It has crashed.
        drop(shim);
        check(&ebb).unwrap();
    }

    #[test]
    fn a_container_of_a_pod_joins_it_or_is_refused() {
        let (root, state) = running();
        let of = |kind: &str, sandbox: &str| {
            spec(
                &json!({ "annotations": { "io.kubernetes.cri.container-type": kind,
                "io.kubernetes.cri.sandbox-id": sandbox } }),
            )
        };
        let member = of("container", "tide");
        assert_eq!(joined(&root, "sea", &member).unwrap(), "unix:///tide");
        assert_eq!(joined(&root, "sea", &of("sandbox", "tide")), None);
        state.remove().unwrap();
        let error = sandbox(&member, root.path(), "sea", &containerd("one")).unwrap_err();
        assert!(error.to_string().contains("tide"), "{error}");
    }
}
