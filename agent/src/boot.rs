//! From the kernel's hand-over to a system that can run containers.
//!
//! The root is a read-only image with nothing in it but the agent and directories to mount on.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::reboot::{RebootMode, reboot};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cgroup;
use crate::disks;
use crate::network::Namespace;
use crate::sys;

/// Open files of the agent, and the limit that containers start with unless they are given one.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// What the kernel derives from the memory that it boots with, as a host has it that is large: memory
/// grows with what is used of it, and a program that asks for gigabytes at once may get them. Each costs
/// nothing, and what is used of it counts as the memory of whoever uses it.
const SIZES: [(&str, &str); 3] = [
    ("vm/overcommit_memory", "1"),
    ("kernel/threads-max", "1048576"),
    ("fs/file-max", "9223372036854775807"),
];

/// Says whether the guest's image, which is memory that nothing can write, refuses to be written as a
/// device (Linux, Documentation/ABI/testing/sysfs-bus-nvdimm). Else the first page would end the machine.
const IMAGE_IS_READ_ONLY: &str = "/sys/bus/nd/devices/region0/read_only";

/// Why the system is not ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system.
    #[error("mount {kind} at {target}")]
    Mount {
        /// Its type.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// The cause.
        source: Errno,
    },
    /// A file or directory of one.
    #[error("{action} {}", path.display())]
    File {
        /// `create`, `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A network namespace for the containers.
    #[error("make a network namespace")]
    Network(#[source] io::Error),
    /// The interface `lo`.
    #[error("bring up the loopback interface")]
    Loopback(#[source] io::Error),
    /// The disks.
    #[error("name the disks in /dev")]
    Disks(#[source] io::Error),
    /// RLIMIT_NOFILE.
    #[error("raise the limit of open files to {MAX_OPEN_FILES}")]
    OpenFiles(#[source] io::Error),
}

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// In this order: a directory that the image does not have is in one mounted before.
const MOUNTS: [Mount; 9] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: NO_PROGRAMS,
        options: None,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: NO_PROGRAMS,
        options: None,
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: Some("mode=755"),
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: Some("mode=620,ptmxmode=666"),
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: NO_DEVICES,
        options: Some("mode=1777"),
    },
    Mount {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: NO_PROGRAMS,
        options: None,
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: NO_DEVICES,
        options: Some("mode=755"),
    },
    Mount {
        kind: "tmpfs",
        target: "/tmp",
        flags: NO_DEVICES,
        options: Some("mode=1777"),
    },
    Mount {
        kind: "cgroup2",
        target: cgroup::ROOT,
        flags: NO_PROGRAMS,
        options: Some("nsdelegate,memory_recursiveprot"),
    },
];

/// Makes the system ready for containers. Returns the network namespace that the cards are in, which this
/// process has left.
///
/// # Errors
/// All of `BootError`.
pub fn prepare() -> Result<Namespace, BootError> {
    for entry in &MOUNTS {
        mount_one(entry)?;
    }
    delegate_controllers()?;
    keep_image()?;
    disks::link().map_err(BootError::Disks)?;
    let cards = leave_cards().map_err(BootError::Network)?;
    sys::bring_up_loopback().map_err(BootError::Loopback)?;
    let limit = Rlimit {
        current: Some(MAX_OPEN_FILES),
        maximum: Some(MAX_OPEN_FILES),
    };
    setrlimit(Resource::Nofile, limit).map_err(|errno| BootError::OpenFiles(errno.into()))?;
    for (file, value) in SIZES {
        write(Path::new("/proc/sys").join(file), value)?;
    }
    Ok(cards)
}

/// Has the image refuse to be written, if it is mapped and not a disk.
fn keep_image() -> Result<(), BootError> {
    if !Path::new(IMAGE_IS_READ_ONLY).exists() {
        return Ok(());
    }
    write(IMAGE_IS_READ_ONLY.into(), "1")
}

/// Enters a network namespace without cards (`network` fetches those that are needed), and opens the
/// one before it.
fn leave_cards() -> io::Result<Namespace> {
    let cards = Namespace::own()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(cards)
}

/// Writes a line to the kernel's log, the one place that is always there.
pub fn complain(line: &str) {
    if let Ok(mut log) = fs::File::options().write(true).open("/dev/kmsg") {
        // <3>: an error (include/linux/kern_levels.h). One write is one record, and there is nobody
        // else to tell.
        let _ = log.write_all(format!("<3>hull-agent: {line}\n").as_bytes());
    }
}

/// Resets the machine, which ends the VMM. File systems are written back first.
pub fn restart() -> ! {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    complain(&format!("reset the machine: {error}"));
    // The kernel panics, and resets (`panic=-1`), when its init exits.
    std::process::exit(1)
}

fn mount_one(entry: &Mount) -> Result<(), BootError> {
    let Mount {
        kind,
        target,
        flags,
        options,
    } = *entry;
    let path = Path::new(target);
    if !path.exists() {
        fs::create_dir_all(path).map_err(|source| file_error("create", path.into(), source))?;
    }
    match mount(Some(kind), path, Some(kind), flags, options) {
        // The kernel has mounted /dev already (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(BootError::Mount {
            kind,
            target,
            source,
        }),
    }
}

/// Hands every controller to the cgroups below the root. Only a cgroup without processes of its own
/// can do that ("no internal processes"), so the agent moves out of the way first.
fn delegate_controllers() -> Result<(), BootError> {
    let root = Path::new(cgroup::ROOT);
    let (agent, containers) = (root.join("agent"), PathBuf::from(cgroup::CONTAINERS));
    for directory in [&agent, &containers] {
        fs::create_dir_all(directory)
            .map_err(|source| file_error("create", directory.clone(), source))?;
    }
    write(agent.join("cgroup.procs"), "0")?;
    let available = root.join("cgroup.controllers");
    let available = fs::read_to_string(&available)
        .map_err(|source| file_error("read", available.clone(), source))?;
    let all = enable_all(&available);
    write(root.join("cgroup.subtree_control"), &all)?;
    write(containers.join("cgroup.subtree_control"), &all)
}

/// `cpu memory` → `+cpu +memory`.
fn enable_all(controllers: &str) -> String {
    let enable = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"));
    enable.collect::<Vec<_>>().join(" ")
}

fn write(path: PathBuf, text: &str) -> Result<(), BootError> {
    fs::write(&path, text).map_err(|source| file_error("write", path, source))
}

fn file_error(action: &'static str, path: PathBuf, source: io::Error) -> BootError {
    BootError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_enabled() {
        assert_eq!(enable_all("cpuset cpu io\n"), "+cpuset +cpu +io");
        assert_eq!(enable_all("\n"), "");
    }

    #[test]
    fn a_directory_is_mounted_before_what_lies_in_it() {
        let position = |target| {
            MOUNTS
                .iter()
                .position(|entry| entry.target == target)
                .unwrap()
        };

        for inner in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
            assert!(position("/dev") < position(inner));
        }
        assert!(position("/sys") < position(cgroup::ROOT));
    }
}
