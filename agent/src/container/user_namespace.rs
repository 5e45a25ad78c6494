//! User namespaces (user_namespaces(7)), made before libcontainer enters them.
//!
//! libcontainer makes one itself, but would then ask systemd for the cgroup, and there is none here;
//! a namespace with a path it joins. So one is made here, with a network namespace that belongs to
//! it, as it does with runc: who is root in it may bind port 80, and mount sysfs. The agent moves into
//! that, and fetches the network cards there: this machine has one container.
//!
//! Threat: maps come from the configuration; the kernel checks them, and says no to what overlaps.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libcontainer::syscall::syscall::create_syscall;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, fchown, pipe};
use oci_spec::runtime::{LinuxIdMapping, Process};

use super::plan::PlanError;
use crate::operation::{self, OperationError};
use crate::reaper::Reaper;
use crate::stdio::Streams;
use crate::sys;

/// Where namespaces are mounted so that they have a path.
const NAMESPACES: &str = "/run/hull/namespaces";

/// The kernel's limit of lines in a map (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// Which users and groups of the machine are which of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMaps {
    users: Vec<LinuxIdMapping>,
    groups: Vec<LinuxIdMapping>,
}

impl IdMaps {
    /// Of `linux.uidMappings` and `linux.gidMappings`, which must both say something.
    ///
    /// # Errors
    /// `Missing`, `IdMap`.
    pub fn new(
        users: Option<&Vec<LinuxIdMapping>>,
        groups: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Self, PlanError> {
        let checked = |map: Option<&Vec<LinuxIdMapping>>, field| match map {
            None => Err(PlanError::Missing(field)),
            Some(map) if map.is_empty() => Err(PlanError::Missing(field)),
            Some(map) if map.len() > MAX_LINES => Err(PlanError::IdMap(field)),
            Some(map) if machine_id(map, 0).is_none() => Err(PlanError::IdMap(field)),
            Some(map) => Ok(map.clone()),
        };
        Ok(Self {
            users: checked(users, "linux.uidMappings")?,
            groups: checked(groups, "linux.gidMappings")?,
        })
    }

    /// The machine's user and group that are root in the container.
    fn root(&self) -> (Uid, Gid) {
        let id = |map| machine_id(map, 0).expect("`new` has checked that root is mapped");
        (
            Uid::from_raw(id(&self.users)),
            Gid::from_raw(id(&self.groups)),
        )
    }
}

/// Where the user namespace of container `id` has its path.
pub fn path(id: &str) -> PathBuf {
    Path::new(NAMESPACES).join(id)
}

/// Makes the user namespace of container `id`, and a network namespace of its own, into which the
/// agent moves.
///
/// # Errors
/// When the kernel refuses a map, or anything else.
pub async fn create(reaper: &Reaper, id: &str, maps: &IdMaps) -> Result<(), OperationError> {
    let (user, network) = (path(id), path(&format!("{id}.net")));
    operation::run(reaper, "make a user namespace", &[], || {
        pin(maps, &user, &network).map_err(|error| error.to_string())
    })
    .await?;
    let moved = enter_network(&network);
    unpin(&network);
    moved.map_err(|message| OperationError::Failed {
        what: "move into the container's network namespace",
        message,
    })
}

/// Forgets the namespace; it goes with its last process.
pub fn remove(id: &str) {
    unpin(&path(id));
}

/// Prepares a process, still the machine's root, for a container with these maps: gives its streams
/// to the container's root, who could not open them again, and sets limits, which nobody in the
/// namespace may raise.
///
/// # Errors
/// What the kernel says.
pub fn prepare(maps: &IdMaps, process: &Process, streams: &Streams) -> io::Result<()> {
    let (user, group) = maps.root();
    for end in streams.ends() {
        fchown(end, Some(user), Some(group))?;
    }
    let syscall = create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Gives the namespaces of a process that waits in them their maps and paths. Runs in an operation.
fn pin(maps: &IdMaps, user: &Path, network: &Path) -> io::Result<()> {
    let (ready, their_ready) = pipe()?;
    let waiter = sys::fork(&[their_ready.as_fd()], || {
        let inside = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
        let told = inside.and_then(|()| nix::unistd::write(&their_ready, b"!"));
        while told.is_ok() {
            nix::unistd::pause();
        }
        1
    })?;
    drop(their_ready);
    let pinned = (|| {
        let told = nix::unistd::read(&ready, &mut [0])?;
        if told == 0 {
            return Err(io::Error::other("the kernel makes no user namespace"));
        }
        let proc = PathBuf::from(format!("/proc/{waiter}"));
        fs::write(proc.join("uid_map"), lines(&maps.users))
            .map_err(|error| io::Error::other(format!("linux.uidMappings: {error}")))?;
        fs::write(proc.join("gid_map"), lines(&maps.groups))
            .map_err(|error| io::Error::other(format!("linux.gidMappings: {error}")))?;
        fs::create_dir_all(NAMESPACES)?;
        for (name, path) in [("ns/user", user), ("ns/net", network)] {
            File::create(path)?;
            let from = proc.join(name);
            let none = None::<&str>;
            mount(Some(&from), path, none, MsFlags::MS_BIND, none)?;
        }
        Ok(())
    })();
    let waiter = Pid::from_raw(waiter);
    let _ = kill(waiter, Signal::SIGKILL);
    let _ = waitpid(waiter, None);
    pinned
}

/// Moves this process, which has one thread, into the namespace.
fn enter_network(path: &Path) -> Result<(), String> {
    let namespace = File::open(path).map_err(|error| error.to_string())?;
    setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| errno.desc().to_owned())?;
    sys::bring_up_loopback().map_err(|error| error.to_string())
}

fn unpin(path: &Path) {
    // Nothing may be there: not every container has one.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// The machine's id that is the container's `id`.
fn machine_id(map: &[LinuxIdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|line| {
        let offset = id.checked_sub(line.container_id())?;
        let mapped = offset < line.size();
        mapped.then(|| line.host_id().checked_add(offset))?
    })
}

/// The text of `/proc/PID/uid_map`: first id inside, first id outside, how many.
fn lines(map: &[LinuxIdMapping]) -> String {
    map.iter()
        .map(|line| {
            let (inside, outside) = (line.container_id(), line.host_id());
            format!("{inside} {outside} {}\n", line.size())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(u32, u32, u32)]) -> Vec<LinuxIdMapping> {
        let line = |(inside, outside, size): &(u32, u32, u32)| {
            serde_json::from_value(serde_json::json!(
                { "containerID": inside, "hostID": outside, "size": size }
            ))
            .unwrap()
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn the_containers_root_is_found_in_the_map() {
        let users = map(&[(5, 50, 3), (0, 1000, 5)]);
        let maps = IdMaps::new(Some(&users), Some(&map(&[(0, 7, 1)]))).unwrap();

        assert_eq!(maps.root(), (Uid::from_raw(1000), Gid::from_raw(7)));
        assert_eq!(lines(&users), "5 50 3\n0 1000 5\n");
        assert_eq!(machine_id(&users, 7), Some(52));
        assert_eq!(machine_id(&users, 8), None);
        assert_eq!(machine_id(&map(&[(0, u32::MAX, 2)]), 1), None);
    }

    #[test]
    fn a_map_that_is_missing_or_has_no_root_is_refused() {
        let good = map(&[(0, 1000, 1)]);
        let (empty, rootless) = (Vec::new(), map(&[(1, 1, 1)]));
        for (users, groups, field) in [
            (None, Some(&good), "linux.uidMappings"),
            (Some(&good), Some(&empty), "linux.gidMappings"),
            (Some(&rootless), Some(&good), "linux.uidMappings"),
        ] {
            let error = IdMaps::new(users, groups).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
