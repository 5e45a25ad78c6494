//! OCI configuration → what libcontainer does and what the launcher does after it. Pure.
//!
//! libcontainer prepares namespaces, mounts, devices and the cgroup, as root. What depends on the
//! user's process (working directory, user, capabilities, seccomp, hooks, the program itself) is taken
//! out of its configuration and left to `launch`, the last step before `execve(2)`: so it
//! holds for init and exec alike, its errors are worded for users, and the seccomp profile sees no
//! system call but the program's and the hooks'.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    ContainerState, Hook, Hooks, Linux, LinuxNamespace, LinuxNamespaceType, Spec, State,
};

use super::block_volumes::{self, BlockVolume};
use super::capabilities;
use super::cgroup_owner;
use super::copy_up;
use super::device_nodes::{self, DeviceNode};
use super::devices::{self, Disk};
use super::mounts;
use super::namespaces::{self, Neighbour, UserNamespace};
use super::process_plan::{Confinement, LaunchPlan, check_process, without_launch};
use super::refusal::PlanError;
use super::resources;
use super::seccomp;
use super::start_hooks::StartHooks;
use super::volumes;
use super::working_directory::{self, WorkingDirectory};
use crate::bpf::Instruction;

/// How to create a container.
#[derive(Debug)]
pub struct Plan {
    /// For libcontainer.
    pub spec: Spec,
    /// For the launcher of its init.
    pub launch: LaunchPlan,
    /// For the kernel: which devices it may use.
    pub device_filter: Vec<Instruction>,
    /// For the agent: the user that it gives the cgroup to.
    pub cgroup_owner: Option<u32>,
    /// For the agent: what libcontainer does not make.
    pub device_nodes: Vec<DeviceNode>,
    /// For the agent: what the launcher comes too late for.
    pub working_directory: Option<WorkingDirectory>,
    /// For the kernel, too: `net.*` parameters of a container whose network is the machine's, so
    /// that there is no namespace that libcontainer would set them in.
    pub network_sysctls: HashMap<String, String>,
    /// For the agent: whether it has one to make.
    pub user_namespace: UserNamespace,
    /// For the agent: what it mounts first.
    pub block_volumes: Vec<BlockVolume>,
    /// For the agent: what it enters first.
    pub volumes: Vec<PathBuf>,
}

/// The cgroup of a container, relative to the hierarchy's root.
pub fn cgroup_path(container_id: &str) -> PathBuf {
    PathBuf::from("/hull").join(container_id)
}

/// The OCI bundle of a container, which the agent writes.
pub fn bundle_path(container_id: &str) -> PathBuf {
    PathBuf::from("/run/hull/bundles").join(container_id)
}

/// Checks an id, which becomes part of paths.
///
/// # Errors
/// `Id`.
pub fn check_id(id: &str) -> Result<(), PlanError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if (1..=128).contains(&id.len()) && id.chars().all(allowed) && id != "." && id != ".." {
        Ok(())
    } else {
        Err(PlanError::Id(id.to_owned()))
    }
}

/// Plans a container from its `config.json`; `neighbour` looks up the machine's others, and `disks`
/// are those among its devices.
///
/// # Errors
/// Everything but `Id`.
pub fn container(
    id: &str,
    config: &[u8],
    terminal: bool,
    disks: &[Disk],
    neighbour: impl Fn(&str) -> Option<Neighbour>,
) -> Result<Plan, PlanError> {
    let mut spec: Spec = serde_json::from_slice(config).map_err(|source| PlanError::Decode {
        object: "config.json",
        source,
    })?;
    let root = spec.root().clone().ok_or(PlanError::Missing("root"))?;
    let process = spec.process().clone();
    let process = process.ok_or(PlanError::Missing("process"))?;
    let mut linux = spec.linux().clone().ok_or(PlanError::Missing("linux"))?;
    namespaces::check_has_mounts(&linux)?;
    let propagation = linux.rootfs_propagation().as_deref().map(mounts::of_root);
    linux.set_rootfs_propagation(propagation);
    let user_namespace = namespaces::settle(id, &mut linux, neighbour)?;
    let id_maps = user_namespace.id_maps().cloned();
    let hooks = spec.hooks().as_ref().map(guest_hooks).transpose()?;
    let hooks = hooks.map(|hooks| StartHooks::new(hooks, state(id, &spec)));
    check_process(&process, terminal)?;
    let seccomp = linux.seccomp().clone();
    if let Some(profile) = &seccomp {
        seccomp::check(profile)?;
    }
    if let Some(mut resources) = linux.resources().clone() {
        resources::complete(&mut resources);
        linux.set_resources(Some(resources));
    }
    devices::renumber(&mut linux, disks);
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let device_filter = devices::program(rules.unwrap_or_default())?;

    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let device_nodes = device_nodes::take(&mut linux, mounts, id_maps.as_ref())?;
    let working_directory =
        working_directory::to_make(process.cwd(), &root, mounts, id_maps.as_ref());
    let cgroup_owner = cgroup_owner::of(&process, &linux, mounts, id_maps.as_ref());
    let network_sysctls = take_network_sysctls(&mut linux);
    let mounts = spec.mounts_mut().as_deref_mut().unwrap_or_default();
    let volumes = volumes::of(mounts);
    let block_volumes = block_volumes::take(id, mounts);
    let copy_ups = copy_up::take(mounts);
    let propagations = mounts::propagations(mounts);
    let read_only_devices = mounts::has_read_only_devices(mounts);
    for mount in mounts {
        let options = mount.options().as_deref().map(mounts::reword);
        mount.set_options(options);
    }
    let capabilities = capabilities::of(&process);
    let launchers = capabilities::for_launcher(&capabilities, !copy_ups.is_empty());

    linux
        .set_seccomp(None)
        .set_cgroups_path(Some(cgroup_path(id)));
    spec.set_hooks(None)
        .set_linux(Some(linux))
        .set_process(Some(without_launch(&process, &launchers)));
    Ok(Plan {
        spec,
        launch: LaunchPlan {
            process,
            capabilities,
            confinement: Confinement {
                seccomp,
                id_maps,
                session_keyring: format!("_ses.{id}"),
            },
            create_cwd: true,
            copy_ups,
            propagations,
            read_only_devices,
            hooks,
        },
        device_filter,
        cgroup_owner,
        device_nodes,
        working_directory,
        network_sysctls,
        user_namespace,
        block_volumes,
        volumes,
    })
}

/// Those of `startContainer`, whose programs are the container's. The others are the host's.
fn guest_hooks(hooks: &Hooks) -> Result<Vec<Hook>, PlanError> {
    let mut own = Hooks::default();
    own.set_start_container(hooks.start_container().clone());
    if *hooks == own {
        Ok(hooks.start_container().clone().unwrap_or_default())
    } else {
        Err(PlanError::Unsupported(
            "hooks other than startContainer (they are programs of the host)",
        ))
    }
}

/// What a hook is told of a container whose program does not run yet (OCI runtime-spec 1.2,
/// runtime.md "State").
fn state(id: &str, spec: &Spec) -> State {
    let mut state = State::default();
    state
        .set_version(spec.version().clone())
        .set_id(id.to_owned())
        .set_status(ContainerState::Created)
        .set_bundle(bundle_path(id))
        .set_annotations(spec.annotations().clone());
    state
}

fn take_network_sysctls(linux: &mut Linux) -> HashMap<String, String> {
    let is_network = |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::Network;
    let mut namespaces = linux.namespaces().iter().flatten();
    if namespaces.any(is_network) {
        return HashMap::new();
    }
    let all = linux.sysctl().clone().unwrap_or_default();
    let (network, others) = all
        .into_iter()
        .partition(|(name, _)| name.split(['.', '/']).next() == Some("net"));
    linux.set_sysctl(Some(others));
    network
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;
    use serde_json::{Value, json};

    use super::*;

    /// A small `config.json` with `linux` in the object of that name, and mounts of its own.
    fn config(linux: &str) -> Vec<u8> {
        let mut config = config_as_it_is(linux);
        match &mut config["linux"]["namespaces"] {
            Value::Array(namespaces) => namespaces.push(json!({ "type": "mount" })),
            none => *none = json!([{ "type": "mount" }]),
        }
        config.to_string().into_bytes()
    }

    fn config_as_it_is(linux: &str) -> Value {
        let config = format!(
            r#"{{
                "ociVersion": "1.2.0",
                "root": {{"path": "/run/hull/share/rootfs"}},
                "process": {{
                    "cwd": "/srv",
                    "args": ["sh"],
                    "user": {{"uid": 1000, "gid": 100, "additionalGids": [7], "umask": 2}},
                    "capabilities": {{"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                                      "effective": ["CAP_KILL"]}}
                }},
                "linux": {{ {linux} }}
            }}"#
        );
        serde_json::from_str(&config).unwrap()
    }

    fn plan(id: &str, config: &[u8], terminal: bool) -> Result<Plan, PlanError> {
        container(id, config, terminal, &[], |_| None)
    }

    #[test]
    fn what_the_launcher_does_is_taken_from_libcontainer() {
        let plan = plan("c1", &config(r#""namespaces": [{"type": "pid"}]"#), false).unwrap();

        let theirs = plan.spec.process().clone().unwrap();
        assert_eq!((theirs.user().uid(), theirs.user().gid()), (0, 0));
        assert_eq!(theirs.user().additional_gids(), &None);
        assert_eq!(theirs.user().umask(), Some(2));
        assert_eq!(theirs.cwd(), &PathBuf::from("/"));
        assert_eq!(theirs.env(), &Some(vec!["HOME=/".into()]));
        let permitted = theirs.capabilities().clone().unwrap().permitted().clone();
        assert_eq!(permitted.unwrap().len(), 1 + capabilities::LAUNCHER.len());
        let ours = plan.launch.process;
        assert_eq!((ours.user().uid(), ours.user().gid()), (1000, 100));
        assert_eq!(ours.cwd(), &PathBuf::from("/srv"));
        let permitted = ours.capabilities().clone().unwrap().permitted().clone();
        assert_eq!(permitted.unwrap(), [Capability::Kill].into());
    }

    #[test]
    fn the_launcher_that_copies_files_may_do_so_and_no_other() {
        let permitted = |options: &[&str]| {
            let mut config: Value = serde_json::from_slice(&config("")).unwrap();
            config["mounts"] = json!([
                { "destination": "/srv", "type": "tmpfs", "source": "tmpfs", "options": options }
            ]);
            let plan = plan("c1", config.to_string().as_bytes(), false).unwrap();
            let process = plan.spec.process().clone().unwrap();
            let permitted = process.capabilities().clone().unwrap().permitted().clone();
            permitted.unwrap()
        };

        assert!(permitted(&["tmpcopyup"]).contains(&Capability::Fowner));
        assert!(!permitted(&["nodev"]).contains(&Capability::Fowner));
    }

    #[test]
    fn hooks_of_the_container_are_the_launchers() {
        let hooks = |kind: &str| {
            let mut config: Value = serde_json::from_slice(&config("")).unwrap();
            config["hooks"] = json!({ kind: [{ "path": "/bin/true" }] });
            config.to_string().into_bytes()
        };

        let own = plan("c1", &hooks("startContainer"), false).unwrap();
        let refused = plan("c1", &hooks("createContainer"), false).unwrap_err();

        assert_eq!(own.spec.hooks(), &None);
        assert!(own.launch.hooks.is_some());
        assert!(matches!(refused, PlanError::Unsupported(_)));
    }

    #[test]
    fn a_container_in_the_agents_mount_namespace_is_refused() {
        let config = config_as_it_is("").to_string();

        let error = plan("c1", config.as_bytes(), false).unwrap_err();

        assert!(matches!(error, PlanError::Unsupported(what) if what.contains("mount")));
    }

    #[test]
    fn the_cgroup_is_ours_whatever_the_configuration_says() {
        let plan = plan("c1", &config(r#""cgroupsPath": "/../escape""#), false).unwrap();

        let linux = plan.spec.linux().clone().unwrap();
        assert_eq!(linux.cgroups_path(), &Some(PathBuf::from("/hull/c1")));
    }

    #[test]
    fn a_terminal_in_the_configuration_alone_is_refused() {
        let error = plan("c1", &config(""), true).unwrap_err();

        assert!(matches!(
            error,
            PlanError::Terminal {
                in_spec: false,
                in_request: true
            }
        ));
    }

    #[test]
    fn how_the_root_propagates_is_said_in_libcontainers_words() {
        for (asked, theirs) in [
            ("rshared", "shared"),
            ("rslave", "slave"),
            ("rprivate", "private"),
            ("runbindable", "unbindable"),
            ("slave", "slave"),
            ("rtidal", "rtidal"),
        ] {
            let asked = config(&format!(r#""rootfsPropagation": "{asked}""#));

            let plan = plan("c1", &asked, false).unwrap();

            let linux = plan.spec.linux().clone().unwrap();
            assert_eq!(linux.rootfs_propagation().as_deref(), Some(theirs));
        }
    }

    #[test]
    fn parameters_of_the_machines_network_are_taken_from_libcontainer() {
        let sysctl = r#""sysctl": {"net.core.somaxconn": "7", "kernel.msgmax": "9"}"#;
        let left = |plan: &Plan| {
            let linux = plan.spec.linux().clone().unwrap();
            linux.sysctl().clone().unwrap().len()
        };

        let with_the_machines = plan("c1", &config(sysctl), false).unwrap();
        let own = format!(r#"{sysctl}, "namespaces": [{{"type": "network"}}]"#);
        let with_its_own = plan("c1", &config(&own), false).unwrap();

        let network = ("net.core.somaxconn".to_owned(), "7".to_owned());
        assert_eq!(with_the_machines.network_sysctls, [network].into());
        assert_eq!(left(&with_the_machines), 1);
        assert_eq!(with_its_own.network_sysctls, HashMap::new());
        assert_eq!(left(&with_its_own), 2);
    }

    #[test]
    fn an_action_that_returns_nothing_takes_no_error() {
        let seccomp = |inner| config(&format!(r#""seccomp": {{{inner}}}"#));
        for (profile, field) in [
            (
                r#""defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1"#,
                "defaultErrnoRet",
            ),
            (
                r#""defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 1}]"#,
                "errnoRet",
            ),
        ] {
            let error = plan("c1", &seccomp(profile), false).unwrap_err();

            assert!(
                error.to_string().ends_with(&format!("takes no {field}")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_id_cannot_leave_its_directory() {
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "ä", &"x".repeat(129)] {
            assert!(matches!(check_id(bad), Err(PlanError::Id(_))), "{bad:?}");
        }
        for good in ["0a1b2c", "web.1", "a_b-c+d", "..."] {
            assert!(check_id(good).is_ok(), "{good:?}");
        }
    }
}
