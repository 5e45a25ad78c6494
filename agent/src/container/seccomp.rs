//! What a seccomp profile may say (OCI runtime-spec 1.2, config-linux.md "Seccomp"). Pure.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::refusal::PlanError;

/// Checks a profile; libcontainer would load one that means something else, or nothing.
///
/// # Errors
/// `Missing`, `Errno`, `Unsupported`.
pub fn check(profile: &LinuxSeccomp) -> Result<(), PlanError> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    for rule in rules {
        if rule.names().is_empty() {
            return Err(PlanError::Missing("linux.seccomp.syscalls[].names"));
        }
        check_errno("errnoRet", rule.action(), rule.errno_ret())?;
    }
    check_errno(
        "defaultErrnoRet",
        profile.default_action(),
        profile.default_errno_ret(),
    )?;
    if !cfg!(feature = "seccomp") {
        return Err(PlanError::Unsupported(
            "a seccomp profile (this agent was built without libseccomp)",
        ));
    }
    let mut actions = rules.iter().map(LinuxSyscall::action);
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify
        || actions.any(|action| action == LinuxSeccompAction::ScmpActNotify)
    {
        return Err(PlanError::Unsupported(
            "the seccomp action SCMP_ACT_NOTIFY (its listener is a socket of the host)",
        ));
    }
    Ok(())
}

fn check_errno(
    field: &'static str,
    action: LinuxSeccompAction,
    errno: Option<u32>,
) -> Result<(), PlanError> {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    match (action, errno) {
        (ScmpActErrno | ScmpActTrace, _) | (_, None) => Ok(()),
        (action, Some(_)) => Err(PlanError::Errno { field, action }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_refused() {
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}"#;
        let profile = serde_json::from_str(profile).unwrap();

        let error = check(&profile).unwrap_err();

        assert!(matches!(error, PlanError::Unsupported(_)));
    }
}
