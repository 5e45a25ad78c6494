//! Volumes of the host's that containers of this guest have in common.
//!
//! The host shows a directory once, however many containers have it (the shim's `share`), and each such
//! directory is a file system of its own, which the kernel mounts when it is first entered: in the mount
//! namespace of whoever enters it. Entered by the containers each would have a file system for itself,
//! with files, locks and pages of its own. So the agent enters it before, and their namespaces, copies
//! of its, have the one that it has.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_protocol::SHARE_PATH;
use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::Mount;

/// Those among the sources of a container's mounts.
pub fn of(mounts: &[Mount]) -> Vec<PathBuf> {
    let sources = mounts.iter().filter_map(|mount| mount.source().clone());
    sources
        .filter(|source| source.starts_with(SHARE_PATH))
        .collect()
}

/// Has the kernel mount them. Called in an operation: it waits for the host. What cannot be entered,
/// single files among it, is libcontainer's to mount or complain of.
pub fn enter(volumes: &[PathBuf]) {
    for volume in volumes {
        let _ = File::open(volume.join("."));
    }
}

/// How many containers have each of them; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    users: Arc<Mutex<HashMap<PathBuf, usize>>>,
}

/// A container's hold on its volumes: while there is one, the agent leaves them mounted.
#[derive(Debug)]
pub struct Held {
    all: Volumes,
    paths: Vec<PathBuf>,
}

impl Volumes {
    /// Holds `paths`, which may be there more than once.
    pub fn hold(&self, paths: Vec<PathBuf>) -> Held {
        let mut users = self.users();
        for path in &paths {
            *users.entry(path.clone()).or_default() += 1;
        }
        drop(users);
        Held {
            all: self.clone(),
            paths,
        }
    }

    /// Lets go of one hold; tells whether it was the last.
    fn release(&self, path: &Path) -> bool {
        let mut users = self.users();
        let left = users.get_mut(path).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            users.remove(path);
        }
        left == 0
    }

    fn users(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for path in &self.paths {
            if self.all.release(path) {
                // The host is about to take it away. A single file is no mount point.
                let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_on_the_share_are_found_among_the_mounts() {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/a", "type": "bind", "source": "/run/hull/share/volumes/0" },
            { "destination": "/b", "type": "bind", "source": "/run/hull/sharewood" },
            { "destination": "/c" },
        ]);
        let mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        assert_eq!(of(&mounts), [PathBuf::from("/run/hull/share/volumes/0")]);
    }

    #[test]
    fn the_last_hold_is_told_from_those_before() {
        let volumes = Volumes::default();
        let (a, b) = (PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b"));
        let one = volumes.hold(vec![a.clone(), a.clone(), b.clone()]);
        let two = volumes.hold(vec![a.clone()]);
        drop(one);
        assert!(!volumes.users().contains_key(&b));
        assert_eq!(volumes.users().get(&a), Some(&1));
        assert!(volumes.release(&a));
        // Its hold is gone already; that is nothing to stumble over.
        drop(two);
        assert!(volumes.users().is_empty());
    }
}
