//! Bind mounts that are complete before anybody sees them.
//!
//! A mount that is changed where it stands is changed there alone: its copies in other mount namespaces,
//! virtiofsd's among them, stay as they were when they were made. So it is made apart from all others
//! (`open_tree(2)`), becomes read-only or idmapped there (`mount_setattr(2)`, Linux 5.12), and is mounted
//! then.
#![expect(unsafe_code, reason = "mount_setattr, which no crate wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::idmap::{self, IdMaps};

/// How a bind mount differs from what it is of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manner {
    /// With all that is mounted below it.
    pub recursive: bool,
    /// Nobody can write through it, nor through what is mounted below it.
    pub read_only: bool,
    /// Whose files they are there, if not the same users'.
    pub id_maps: Option<IdMaps>,
}

/// Bind-mounts `from` at `to`. What is mounted below either later does not reach the other: a mount that
/// followed would bring its own flags and users, not these.
///
/// # Errors
/// When `from` does not exist, the kernel refuses, or a file system there cannot be idmapped.
pub fn bind(from: &Path, to: &Path, manner: &Manner) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if manner.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, from, flags)?;
    let read_only = if manner.read_only {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    set(&tree, read_only, libc::MS_PRIVATE, None, true)?;
    if let Some(maps) = &manner.id_maps {
        let namespace = idmap::user_namespace(maps)?;
        let namespace = Some(namespace.as_fd());
        set(&tree, libc::MOUNT_ATTR_IDMAP, 0, namespace, maps.recursive)?;
    }
    move_mount(&tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// `mount_setattr(2)` on a tree that is mounted nowhere yet.
fn set(
    tree: &OwnedFd,
    attributes: u64,
    propagation: libc::c_ulong,
    namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let namespace = namespace.map_or(Ok(0), |it| u64::try_from(it.as_raw_fd()));
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: namespace.map_err(io::Error::other)?,
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptors are open, the path is an empty C string, and the kernel reads as many
    // bytes of `attributes` as it has.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(done)?;
    Ok(())
}
