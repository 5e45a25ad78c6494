//! OCI configuration → what libcontainer does and what the launcher does after it. Pure.
//!
//! libcontainer prepares namespaces, mounts, devices and the cgroup, as root. What depends on the
//! user's process (working directory, user, capabilities, seccomp, the program itself) is taken
//! out of its configuration and left to `launch`, the last step before `execve(2)`: so it
//! holds for init and exec alike, its errors are worded for users, and the seccomp profile sees no
//! system call but the program's.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Hooks, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp,
    LinuxSeccompAction, PosixRlimitType, Process, Spec, UserBuilder,
};

use super::block_volumes::{self, BlockVolume};
use super::capabilities;
use super::copy_up::{self, CopyUp};
use super::devices::{self, DeviceError, Disk};
use super::mounts;
use super::namespaces::{self, Neighbour, UserNamespace};
use super::seccomp;
use super::user_namespace::IdMaps;
use crate::bpf::Instruction;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not the JSON of an OCI object.
    #[error("decode {object}")]
    Decode {
        /// Which object.
        object: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An id that cannot be a file name.
    #[error("invalid id {0:?}: 1 to 128 letters, digits and any of _ + - .")]
    Id(String),
    /// A field that a container cannot do without.
    #[error("the configuration has no {0}")]
    Missing(&'static str),
    /// `process.terminal` contradicts the streams.
    #[error("process.terminal is {in_spec} but the streams were set up for {in_request}")]
    Terminal {
        /// What the configuration says.
        in_spec: bool,
        /// What the request says.
        in_request: bool,
    },
    /// A field that says something a Hull guest does not do.
    #[error("not supported in a microVM: {0}")]
    Unsupported(&'static str),
    /// A device rule that means nothing.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A map of user or group ids that no container can live with.
    #[error("{0} must map the container's root (id 0), in at most 340 lines")]
    IdMap(&'static str),
    /// A namespace of a container that has none, or is not here.
    #[error("linux.namespaces[{namespace}]: container {container:?} has none to join here")]
    NoNeighbour {
        /// Its type.
        namespace: LinuxNamespaceType,
        /// Whose it was to be.
        container: String,
    },
    /// A working directory that `chdir(2)` would take relative to nothing.
    #[error("process.cwd {} is not absolute", .0.display())]
    RelativeCwd(PathBuf),
    /// Two limits for the same resource.
    #[error("process.rlimits has {0} twice")]
    DuplicateRlimit(PosixRlimitType),
    /// A seccomp action that returns no error, with one to return.
    #[error("linux.seccomp: {action:?} takes no {field}")]
    Errno {
        /// `errnoRet` or `defaultErrnoRet`.
        field: &'static str,
        /// The action.
        action: LinuxSeccompAction,
    },
}

/// How to create a container.
#[derive(Debug)]
pub struct Plan {
    /// For libcontainer.
    pub spec: Spec,
    /// For the launcher of its init.
    pub launch: LaunchPlan,
    /// For the kernel: which devices it may use.
    pub device_filter: Vec<Instruction>,
    /// For the kernel, too: `net.*` parameters of a container whose network is the machine's, so
    /// that there is no namespace that libcontainer would set them in.
    pub network_sysctls: HashMap<String, String>,
    /// For the agent: whether it has one to make.
    pub user_namespace: UserNamespace,
    /// For the agent: what it mounts first.
    pub block_volumes: Vec<BlockVolume>,
}

/// How to run a process in a container.
#[derive(Debug)]
pub struct ExecPlan {
    /// For libcontainer.
    pub process: Process,
    /// For the launcher.
    pub launch: LaunchPlan,
}

/// What every process of a container is under, its init as its execs.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// The profile to load.
    pub seccomp: Option<LinuxSeccomp>,
    /// The ids of the user namespace, if there is one.
    pub id_maps: Option<IdMaps>,
}

/// What is left to do once a process is inside its container.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    /// The user's `process`, unchanged.
    pub process: Process,
    /// Its capabilities, every set.
    pub capabilities: LinuxCapabilities,
    /// What it shares with the container's other processes.
    pub confinement: Confinement,
    /// Whether to create a missing working directory, as `runc` does for an init.
    pub create_cwd: bool,
    /// What is left to do for an init's mounts.
    pub copy_ups: Vec<CopyUp>,
    /// And then.
    pub propagations: Vec<mounts::Propagation>,
}

/// The cgroup of a container, relative to the hierarchy's root.
pub fn cgroup_path(container_id: &str) -> PathBuf {
    PathBuf::from("/hull").join(container_id)
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
    spec.root().as_ref().ok_or(PlanError::Missing("root"))?;
    let process = spec.process().clone();
    let process = process.ok_or(PlanError::Missing("process"))?;
    let mut linux = spec.linux().clone().ok_or(PlanError::Missing("linux"))?;
    let user_namespace = namespaces::settle(id, &mut linux, neighbour)?;
    let id_maps = user_namespace.id_maps().cloned();
    let hooks = spec.hooks().as_ref().map(guest_hooks).transpose()?;
    check_process(&process, terminal)?;
    let seccomp = linux.seccomp().clone();
    if let Some(profile) = &seccomp {
        seccomp::check(profile)?;
    }
    devices::renumber(&mut linux, disks);
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let device_filter = devices::program(rules.unwrap_or_default())?;

    let network_sysctls = take_network_sysctls(&mut linux);
    let mounts = spec.mounts_mut().as_deref_mut().unwrap_or_default();
    let block_volumes = block_volumes::take(id, mounts);
    let copy_ups = copy_up::take(mounts);
    let propagations = mounts::propagations(mounts);
    for mount in mounts {
        let options = mount.options().as_deref().map(mounts::reword);
        mount.set_options(options);
    }
    let capabilities = capabilities::of(&process);

    linux
        .set_seccomp(None)
        .set_cgroups_path(Some(cgroup_path(id)));
    spec.set_hooks(hooks)
        .set_linux(Some(linux))
        .set_process(Some(without_launch(&process, &capabilities)));
    Ok(Plan {
        spec,
        launch: LaunchPlan {
            process,
            capabilities,
            confinement: Confinement { seccomp, id_maps },
            create_cwd: true,
            copy_ups,
            propagations,
        },
        device_filter,
        network_sysctls,
        user_namespace,
        block_volumes,
    })
}

/// Plans a further process of a container.
///
/// # Errors
/// Everything but `Id` and `Unsupported`.
pub fn exec(
    process: &[u8],
    confinement: &Confinement,
    terminal: bool,
) -> Result<ExecPlan, PlanError> {
    let process: Process = serde_json::from_slice(process).map_err(|source| PlanError::Decode {
        object: "process",
        source,
    })?;
    check_process(&process, terminal)?;
    let capabilities = capabilities::of(&process);
    Ok(ExecPlan {
        process: without_launch(&process, &capabilities),
        launch: LaunchPlan {
            process,
            capabilities,
            confinement: confinement.clone(),
            create_cwd: false,
            copy_ups: Vec::new(),
            propagations: Vec::new(),
        },
    })
}

/// Lets `startContainer` through: its program is the container's. The others are the host's.
fn guest_hooks(hooks: &Hooks) -> Result<Hooks, PlanError> {
    let mut own = Hooks::default();
    own.set_start_container(hooks.start_container().clone());
    if *hooks == own {
        Ok(own)
    } else {
        Err(PlanError::Unsupported(
            "hooks other than startContainer (they are programs of the host)",
        ))
    }
}

fn check_process(process: &Process, terminal: bool) -> Result<(), PlanError> {
    let in_spec = process.terminal().unwrap_or(false);
    if in_spec != terminal {
        return Err(PlanError::Terminal {
            in_spec,
            in_request: terminal,
        });
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(PlanError::Missing("process.args"));
    }
    if !process.cwd().is_absolute() {
        return Err(PlanError::RelativeCwd(process.cwd().clone()));
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (number, limit) in limits.iter().enumerate() {
        if limits[..number].iter().any(|l| l.typ() == limit.typ()) {
            return Err(PlanError::DuplicateRlimit(limit.typ()));
        }
    }
    Ok(())
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

/// The process as libcontainer is to see it: root in `/`, with what the launcher needs.
fn without_launch(process: &Process, capabilities: &LinuxCapabilities) -> Process {
    let mut user = UserBuilder::default().uid(0_u32).gid(0_u32);
    if let Some(umask) = process.user().umask() {
        user = user.umask(umask);
    }
    let mut process = process.clone();
    process
        .set_user(user.build().expect("every field of a user has a default"))
        .set_cwd(PathBuf::from("/"))
        // Not the program's: `launch` gives it its own. With HOME set, libcontainer does not look
        // for one with getpwuid(3), which would load libraries that the container's
        // nsswitch.conf names into a process that still has every capability.
        .set_env(Some(vec!["HOME=/".into()]))
        .set_capabilities(Some(capabilities::for_launcher(capabilities)));
    process
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Capabilities, Capability};

    use super::*;

    /// A small `config.json` with `extra` in its `linux` object.
    fn config(linux: &str) -> Vec<u8> {
        format!(
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
        )
        .into_bytes()
    }

    fn plan(id: &str, config: &[u8], terminal: bool) -> Result<Plan, PlanError> {
        container(id, config, terminal, &[], |_| None)
    }

    fn process(cwd: &str, args: &str) -> Vec<u8> {
        format!(r#"{{"cwd": "{cwd}", "args": [{args}], "user": {{"uid": 0, "gid": 0}}}}"#).into()
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
    fn a_process_needs_arguments_and_an_absolute_directory() {
        let no_args = exec(&process("/", ""), &Confinement::default(), false).unwrap_err();
        let relative =
            exec(&process("srv", r#""sh""#), &Confinement::default(), false).unwrap_err();

        assert!(matches!(no_args, PlanError::Missing("process.args")));
        assert!(matches!(relative, PlanError::RelativeCwd(_)));
    }

    #[test]
    fn capabilities_that_are_not_given_are_none() {
        let plan = exec(&process("/", r#""sh""#), &Confinement::default(), false).unwrap();

        let sets = plan.launch.capabilities;
        assert_eq!(sets.bounding(), &Some(Capabilities::new()));
        assert_eq!(sets.effective(), &Some(Capabilities::new()));
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
    fn a_resource_has_one_limit() {
        let process = br#"{"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "rlimits": [
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
            {"type": "RLIMIT_CORE", "soft": 2, "hard": 2}]}"#;

        let error = exec(process, &Confinement::default(), false).unwrap_err();

        assert_eq!(error.to_string(), "process.rlimits has RLIMIT_CORE twice");
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
