//! Idmapped mounts: who owns what in a volume, as the container sees it.
//!
//! They are made here and not in the guest: the host's file systems know how, and what virtiofsd
//! reads from such a mount is mapped already.
#![expect(unsafe_code, reason = "a fork for a user namespace")]

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, pipe};
use oci_spec::runtime::LinuxIdMapping;

/// Which ids of a file system are which of the machine (`mounts[].uidMappings` and
/// `mounts[].gidMappings`, OCI runtime-spec 1.2 §mounts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub users: Vec<LinuxIdMapping>,
    /// Groups.
    pub groups: Vec<LinuxIdMapping>,
    /// Whether what is mounted below is mapped, too (`ridmap`).
    pub recursive: bool,
}

/// A user namespace with these maps, for `mount_setattr(2)`. It belongs to a process only until it has
/// them.
///
/// # Errors
/// When the kernel refuses the maps, or makes no user namespace.
pub fn user_namespace(maps: &IdMaps) -> io::Result<OwnedFd> {
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
