//! A working directory that the image lacks, in a root that will be read-only.
//!
//! The launcher makes what is missing of `process.cwd`, but comes when libcontainer has made the root
//! read-only. So it is made before libcontainer mounts anything, as with runc.
//!
//! Threat: the image decides what is at the path. Links lead no further than its root.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Root};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use super::device_nodes::make_directories;
use super::user_namespace::IdMaps;

/// A directory to be there before the root is read-only.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// Within the container's root.
    path: PathBuf,
    owner: (Uid, Gid),
}

/// The working directory `cwd`, unless the launcher can make it: the root is writable, or what is to be
/// in it is a mount's.
pub fn to_make(
    cwd: &Path,
    root: &Root,
    mounts: &[Mount],
    id_maps: Option<&IdMaps>,
) -> Option<WorkingDirectory> {
    let covers = |at: &Path| at != Path::new("/") && cwd.starts_with(at);
    let is_covered = mounts.iter().any(|mount| covers(mount.destination()));
    if is_covered || !root.readonly().unwrap_or(false) {
        return None;
    }
    let (uid, gid) = id_maps.map_or(Some((0, 0)), |maps| maps.of_the_machine(0, 0))?;
    Some(WorkingDirectory {
        path: cwd.to_owned(),
        owner: (Uid::from_raw(uid), Gid::from_raw(gid)),
    })
}

/// Makes it in the root file system at `root`, with what is missing above it. Runs in an operation.
///
/// # Errors
/// What the kernel says.
pub fn make(root: &Path, directory: &WorkingDirectory) -> Result<(), Errno> {
    make_directories(root, &directory.path, Some(directory.owner))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use serde_json::{Value, json};

    use super::*;

    fn planned(cwd: &str, root: Value, mounts: Value) -> Option<WorkingDirectory> {
        let root: Root = serde_json::from_value(root).unwrap();
        let mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        to_make(Path::new(cwd), &root, &mounts, None)
    }

    fn own(path: &str) -> WorkingDirectory {
        WorkingDirectory {
            path: PathBuf::from(path),
            // Who runs the tests may not give files away.
            owner: (rustix::process::getuid(), rustix::process::getgid()),
        }
    }

    #[test]
    fn what_the_launcher_can_make_is_left_to_it() {
        let read_only = json!({ "path": "/r", "readonly": true });
        let mounts = json!([{ "destination": "/" }, { "destination": "/tmp" }]);
        let planned = |cwd, root: &Value| planned(cwd, root.clone(), mounts.clone());

        assert!(planned("/new/dir", &read_only).is_some());
        assert!(planned("/tmpfs", &read_only).is_some());
        assert!(planned("/tmp/dir", &read_only).is_none());
        assert!(planned("/new/dir", &json!({ "path": "/r" })).is_none());
    }

    #[test]
    fn it_is_made_with_those_above_it_and_within_the_root() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), root.path().join("out")).unwrap();

        make(root.path(), &own("/new/dir")).unwrap();
        make(root.path(), &own("/new/dir")).unwrap();
        let followed = make(root.path(), &own("/out/dir"));

        let mode = |path| fs::metadata(root.path().join(path)).unwrap().permissions();
        assert_eq!(mode("new").mode() & 0o777, 0o755);
        assert_eq!(mode("new/dir").mode() & 0o777, 0o755);
        assert!(followed.is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
