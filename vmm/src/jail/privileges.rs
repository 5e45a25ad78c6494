//! Whose process it is, and what it may do.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, getpid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{JailError, step};

/// The first process of a pid namespace sees no other.
pub(super) fn be_first_of_namespace() -> Result<(), JailError> {
    match getpid().as_raw_pid() {
        1 => Ok(()),
        other => Err(JailError::NotFirst(other)),
    }
}

/// Becomes the user and the group `uid`, and keeps its capabilities for the next step.
pub(super) fn become_user(uid: u32) -> Result<(), JailError> {
    as_user(Uid::from_raw(uid), Gid::from_raw(uid)).map_err(step("become the sandbox's user"))
}

fn as_user(uid: Uid, gid: Gid) -> Result<(), Errno> {
    set_thread_groups(&[])?;
    set_keep_capabilities(true)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    // Kept are the permitted ones; they take effect again. Some hosts let nobody else make a user
    // namespace.
    let mut sets = capabilities(None)?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets)?;
    // Until the maps are written, for which the files in /proc have to be the user's and not root's.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
}

/// Gives up every capability for good, and what could bring one back.
pub(super) fn drop_all() -> Result<(), JailError> {
    give_up().map_err(step("give up capabilities"))
}

fn give_up() -> Result<(), Errno> {
    set_no_new_privs(true)?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) if number > 0 => break,
            Err(e) => return Err(e),
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets)?;
    // No core dump, and no other process of this user may look inside.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
