//! Devices outside `/dev` (`linux.devices`), which libcontainer refuses: nodes of the root file system.
//!
//! They are made before libcontainer mounts anything, and stay in the container's writable layer, as
//! with runc. Below a mount one would not be seen: that is refused.
//!
//! Threat: the image decides what is at the path. Links lead no further than its root, and what is
//! there already is left alone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::user_namespace::IdMaps;

/// Mode of a device whose configuration has none: runc's and libcontainer's.
const MODE: u32 = 0o666;

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum DeviceNodeError {
    /// A path that is none of a file.
    #[error("linux.devices[{}].path: it is absolute and has no \"..\"", .0.display())]
    Path(PathBuf),
    /// A mount would cover it.
    #[error("linux.devices[{}].path: outside /dev a device cannot be below a mount", .0.display())]
    Covered(PathBuf),
    /// A number that no device has.
    #[error("linux.devices[{}]: there is no device {major}:{minor}", path.display())]
    Number {
        /// Where it was to be.
        path: PathBuf,
        /// Its major number.
        major: i64,
        /// Its minor number.
        minor: i64,
    },
    /// An owner whom the user namespace does not have.
    #[error("linux.devices[{}]: the user namespace has no such uid or gid", .0.display())]
    Owner(PathBuf),
    /// Something else is there.
    #[error("linux.devices[{}]: there is another file at that path", .0.display())]
    Taken(PathBuf),
    /// The kernel refuses.
    #[error("linux.devices[{}]: make the node", path.display())]
    Make {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Within the container's root.
    path: PathBuf,
    kind: FileType,
    mode: Mode,
    number: u64,
    owner: (Uid, Gid),
}

/// The multiplexer of the container's own pseudo-terminals, which is a link into its devpts, as with
/// runc: no other node is made there.
const MULTIPLEXER: &str = "/dev/ptmx";

/// Takes the devices outside `/dev` out of a configuration, and the one that every container has.
///
/// # Errors
/// `Path`, `Covered`, `Number`, `Owner`.
pub fn take(
    linux: &mut Linux,
    mounts: &[Mount],
    id_maps: Option<&IdMaps>,
) -> Result<Vec<DeviceNode>, DeviceNodeError> {
    let mut all = linux.devices().clone().unwrap_or_default();
    all.retain(|device| device.path() != Path::new(MULTIPLEXER));
    let (kept, elsewhere): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|device| device.path().starts_with("/dev"));
    linux.set_devices(Some(kept));
    let nodes = elsewhere.iter();
    nodes.map(|device| node(device, mounts, id_maps)).collect()
}

fn node(
    device: &LinuxDevice,
    mounts: &[Mount],
    id_maps: Option<&IdMaps>,
) -> Result<DeviceNode, DeviceNodeError> {
    let path = device.path().clone();
    let mut components = path.components();
    let is_plain = components.next() == Some(Component::RootDir)
        && components.all(|it| matches!(it, Component::Normal(_)));
    if !is_plain || path.file_name().is_none() {
        return Err(DeviceNodeError::Path(path));
    }
    let covers = |at: &Path| at != Path::new("/") && path.starts_with(at);
    if mounts.iter().any(|mount| covers(mount.destination())) {
        return Err(DeviceNodeError::Covered(path));
    }
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let (major, minor) = match kind {
        FileType::Fifo => (0, 0),
        _ => (device.major(), device.minor()),
    };
    let (Ok(wide_major), Ok(wide_minor)) = (u32::try_from(major), u32::try_from(minor)) else {
        return Err(DeviceNodeError::Number { path, major, minor });
    };
    let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    let owner = match id_maps {
        Some(maps) => maps.of_the_machine(uid, gid),
        None => Some((uid, gid)),
    };
    let Some((uid, gid)) = owner else {
        return Err(DeviceNodeError::Owner(path));
    };
    Ok(DeviceNode {
        path,
        kind,
        mode: Mode::from_raw_mode(device.file_mode().unwrap_or(MODE)),
        number: rustix::fs::makedev(wide_major, wide_minor),
        owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
    })
}

/// Makes the nodes in the root file system at `root`. One that is there already, of the same kind and
/// number, may stay. Runs in an operation.
///
/// # Errors
/// `Taken`, `Make`.
pub fn make(root: &Path, nodes: &[DeviceNode]) -> Result<(), DeviceNodeError> {
    // Modes are the configuration's, not this process's.
    rustix::process::umask(Mode::empty());
    nodes.iter().try_for_each(|node| {
        let made = make_one(root, node).map_err(|errno| DeviceNodeError::Make {
            path: node.path.clone(),
            source: errno.into(),
        });
        if made? {
            Ok(())
        } else {
            Err(DeviceNodeError::Taken(node.path.clone()))
        }
    })
}

/// Whether the node is there.
fn make_one(root: &Path, node: &DeviceNode) -> Result<bool, Errno> {
    let parent = node.path.parent().unwrap_or(Path::new("/"));
    let parent = make_directories(root, parent, None)?;
    let name = node.path.file_name().unwrap_or_default();
    match rustix::fs::mknodat(&parent, name, node.kind, node.mode, node.number) {
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_same = FileType::from_raw_mode(there.st_mode) == node.kind
                && (node.kind == FileType::Fifo || there.st_rdev == node.number);
            Ok(is_same)
        }
        made => {
            made?;
            let (uid, gid) = (Some(node.owner.0), Some(node.owner.1));
            rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(true)
        }
    }
}

/// Opens a directory within `root`, having made what is missing of it, for `owner` if there is one.
pub(super) fn make_directories(
    root: &Path,
    path: &Path,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let open = |path: &Path| {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, path, flags, Mode::empty(), within)
    };
    let mut reached = PathBuf::from("/");
    let mut directory = open(&reached)?;
    for component in path.components().skip(1) {
        reached.push(component);
        directory = match open(&reached) {
            Err(Errno::NOENT) => {
                let name = component.as_os_str();
                rustix::fs::mkdirat(directory.as_fd(), name, Mode::from_raw_mode(0o755))?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Some(uid), Some(gid));
                    rustix::fs::chownat(&directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                open(&reached)?
            }
            opened => opened?,
        };
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    use serde_json::{Value, json};

    use super::*;

    fn taken(device: &Value, mounts: &Value) -> Result<Vec<DeviceNode>, DeviceNodeError> {
        let in_dev = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 });
        let ptmx = json!({ "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 });
        let linux = json!({ "devices": [in_dev, ptmx, device] });
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        let mounts: Vec<Mount> = serde_json::from_value(mounts.clone()).unwrap();
        let nodes = take(&mut linux, &mounts, None);
        assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
        nodes
    }

    fn pipe(path: &str) -> Vec<DeviceNode> {
        let pipe = json!({ "path": path, "type": "p", "fileMode": 0o620 });
        let mut nodes = taken(&pipe, &json!([])).unwrap();
        // Who runs the tests may not give files away.
        let own = (rustix::process::getuid(), rustix::process::getgid());
        nodes[0].owner = own;
        nodes
    }

    #[test]
    fn what_cannot_be_seen_or_is_no_device_is_refused() {
        let null = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 3 });
        let mounts = json!([{ "destination": "/srv", "type": "tmpfs" }]);
        for (device, error) in [
            (null("/srv/null"), "below a mount"),
            (null("/opt/../srv/null"), "\"..\""),
            (null("/"), "absolute"),
            (
                json!({ "path": "/x", "type": "b", "major": -1, "minor": 0 }),
                "no device -1:0",
            ),
        ] {
            let refused = taken(&device, &mounts).unwrap_err().to_string();
            assert!(refused.contains(error), "{refused}");
        }
    }

    #[test]
    fn a_node_is_made_with_its_directories_and_may_be_there_again() {
        let root = tempfile::tempdir().unwrap();
        let nodes = pipe("/a/b/pipe");

        make(root.path(), &nodes).unwrap();
        make(root.path(), &nodes).unwrap();

        let made = fs::metadata(root.path().join("a/b/pipe")).unwrap();
        assert!(made.file_type().is_fifo());
        assert_eq!(made.permissions().mode() & 0o777, 0o620);
    }

    #[test]
    fn another_file_is_left_alone_and_links_lead_nowhere_else() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("taken"), "tide").unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();

        let error = make(root.path(), &pipe("/taken")).unwrap_err();
        let followed = make(root.path(), &pipe("/out/pipe"));

        assert!(matches!(error, DeviceNodeError::Taken(_)), "{error}");
        assert_eq!(fs::read(root.path().join("taken")).unwrap(), b"tide");
        assert!(followed.is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
