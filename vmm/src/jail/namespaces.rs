//! Namespaces: an empty root, nobody's System V queues, no host name, and one user.
//!
//! The first three belong to the host's user namespace, the last is made after them: should the
//! process ever regain capabilities, they are of a namespace that owns nothing.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{JailError, step};

/// Where the empty root is mounted before it becomes the root; a directory that is there.
const PLACE: &str = "/proc";

/// This process's folder in `/proc`, to write its user map when no `/proc` is left.
pub(super) fn open_own_entry() -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, "/proc/self", flags, Mode::empty()).map_err(step("open /proc/self"))
}

/// Enters mount, IPC and UTS namespaces, where the root is empty, read-only, and all there is.
pub(super) fn enter_empty_root() -> Result<(), JailError> {
    let new = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    unshare(new).map_err(step("make mount, ipc and uts namespaces"))?;
    empty_root().map_err(step("change to an empty root"))
}

fn empty_root() -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    // One inode is the directory itself: nothing could be made in it even while it can be written.
    let options = c"mode=555,nr_inodes=1,size=4k";
    mount("none", PLACE, "tmpfs", flags, options)?;
    chdir(PLACE)?;
    // pivot_root(2): the old root comes to lie over the new one, and is taken away.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", flags | MountFlags::RDONLY | MountFlags::BIND, c"")
}

/// Enters a user namespace in which `uid`, by now this process's, is the only user and group.
pub(super) fn enter_user_namespace(own: &OwnedFd, uid: u32) -> Result<(), JailError> {
    unshare(UnshareFlags::NEWUSER).map_err(|e| JailError::UserNamespace(e.into()))?;
    // user_namespaces(7): whoever may not change groups may map its own one.
    let map = format!("{uid} {uid} 1");
    for (name, text) in [("setgroups", "deny"), ("uid_map", &map), ("gid_map", &map)] {
        write(own, name, text).map_err(step("write the user namespace's maps"))?;
    }
    Ok(())
}

fn write(folder: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let file = openat(
        folder,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // The kernel takes such a file in one write or not at all.
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "unshare may take descriptors from under their owners"
)]
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    debug_assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay");
    // SAFETY: descriptors are not unshared: CLONE_FILES is in no caller's flags.
    unsafe { unshare_unsafe(flags) }
}
