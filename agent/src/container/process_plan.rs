//! An OCI `process` → what libcontainer does for it and what the launcher does after that. Pure.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp, Process, UserBuilder};

use super::capabilities;
use super::copy_up::CopyUp;
use super::mounts::Propagation;
use super::refusal::PlanError;
use super::start_hooks::StartHooks;
use super::user_namespace::IdMaps;

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
    /// The name of the session keyring: runc's.
    pub session_keyring: String,
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
    pub propagations: Vec<Propagation>,
    /// And at last: whether `/dev` is to be read-only.
    pub read_only_devices: bool,
    /// What an init runs before its program.
    pub hooks: Option<StartHooks>,
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
        process: without_launch(&process, &capabilities::for_launcher(&capabilities, false)),
        launch: LaunchPlan {
            process,
            capabilities,
            confinement: confinement.clone(),
            create_cwd: false,
            copy_ups: Vec::new(),
            propagations: Vec::new(),
            read_only_devices: false,
            hooks: None,
        },
    })
}

/// Checks what libcontainer would take as something else, or fail at late.
///
/// # Errors
/// `Terminal`, `Missing`, `RelativeCwd`, `DuplicateRlimit`.
pub(super) fn check_process(process: &Process, terminal: bool) -> Result<(), PlanError> {
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

/// The process as libcontainer is to see it: root in `/`, with the launcher's capabilities.
pub(super) fn without_launch(process: &Process, launchers: &LinuxCapabilities) -> Process {
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
        .set_capabilities(Some(launchers.clone()));
    process
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capabilities;

    use super::*;

    fn process(cwd: &str, args: &str) -> Vec<u8> {
        format!(r#"{{"cwd": "{cwd}", "args": [{args}], "user": {{"uid": 0, "gid": 0}}}}"#).into()
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
    fn a_resource_has_one_limit() {
        let process = br#"{"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "rlimits": [
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
            {"type": "RLIMIT_CORE", "soft": 2, "hard": 2}]}"#;

        let error = exec(process, &Confinement::default(), false).unwrap_err();

        assert_eq!(error.to_string(), "process.rlimits has RLIMIT_CORE twice");
    }
}
