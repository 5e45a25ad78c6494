//! Landlock: not even the empty root may be looked into, no TCP port bound or reached, no process
//! outside signalled, as far as the kernel knows these (landlock.rst).

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope,
};

use super::JailError;

/// What is denied. Newer kernels know of more, which a later version of Hull will deny.
const KNOWN: ABI = ABI::V6;

/// Denies all of it, with no exception. A kernel without Landlock, or with an early one, denies less:
/// the mount namespace and the filters hold without it.
pub(super) fn restrict() -> Result<(), JailError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(KNOWN)))
        .and_then(|ruleset| ruleset.create()?.restrict_self());
    ruleset.map_err(JailError::Landlock)?;
    Ok(())
}
