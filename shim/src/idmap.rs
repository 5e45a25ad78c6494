//! Idmapped bind mounts (`mount_setattr(2)`): who owns what in a volume, as the container sees it.
//!
//! They are made here and not in the guest: the host's file systems know how, and what virtiofsd
//! reads from such a mount is mapped already.
#![expect(
    unsafe_code,
    reason = "mount_setattr, which no crate wraps, and a fork for a user namespace"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, pipe};
use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Which ids of a file system are which of the machine (`mounts[].uidMappings` and
/// `mounts[].gidMappings`, OCI runtime-spec 1.2 §mounts).
#[derive(Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub users: Vec<LinuxIdMapping>,
    /// Groups.
    pub groups: Vec<LinuxIdMapping>,
    /// Whether what is mounted below is mapped, too (`ridmap`).
    pub recursive: bool,
}

/// Bind-mounts `from` at `to`, its owners mapped; if `recursive`, with all that is mounted below it.
///
/// # Errors
/// When the kernel refuses the maps, or a file system there cannot be mapped.
pub fn bind(from: &Path, to: &Path, maps: &IdMaps, recursive: bool) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, from, flags)?;
    set(&tree, &user_namespace(maps)?, maps.recursive)?;
    move_mount(&tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// `mount_setattr(2)` with `MOUNT_ATTR_IDMAP` on a tree that is mounted nowhere yet.
fn set(tree: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: both descriptors are open, the path is an empty C string, and the kernel reads as
    // many bytes of `attributes` as it has.
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
    nix::errno::Errno::result(done)?;
    Ok(())
}

/// A user namespace with these maps. It belongs to a process only until it has them.
fn user_namespace(maps: &IdMaps) -> io::Result<OwnedFd> {
    let (ready, their_ready) = pipe()?;
    // SAFETY: this process has several threads, so the child may do nothing but async-signal-safe
    // calls: unshare, write, pause and _exit are, and allocate nothing.
    let child = match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let told = unshare(CloneFlags::CLONE_NEWUSER)
                .and_then(|()| nix::unistd::write(&their_ready, b"!"));
            while told.is_ok() {
                nix::unistd::pause();
            }
            // SAFETY: ends the process without running the parent's destructors.
            unsafe { libc::_exit(1) }
        }
    };
    drop(their_ready);
    let namespace = (|| {
        if nix::unistd::read(&ready, &mut [0])? == 0 {
            return Err(io::Error::other("this kernel makes no user namespace"));
        }
        fs::write(format!("/proc/{child}/uid_map"), text(&maps.users))?;
        fs::write(format!("/proc/{child}/gid_map"), text(&maps.groups))?;
        File::open(format!("/proc/{child}/ns/user"))
    })();
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    Ok(namespace?.into())
}

/// The text of `/proc/PID/uid_map` (user_namespaces(7)).
fn text(map: &[LinuxIdMapping]) -> String {
    map.iter()
        .map(|line| {
            let (inside, outside) = (line.container_id(), line.host_id());
            format!("{inside} {outside} {}\n", line.size())
        })
        .collect()
}
