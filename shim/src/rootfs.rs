//! A container's root file system: the snapshotter's mounts, which go where containerd and `docker cp`
//! look for them, `rootfs` in the bundle.

use std::path::{Path, PathBuf};
use std::thread;

use containerd_shim::mount::mount_rootfs;
use containerd_shim::protos::api::Mount;

use crate::mount_points::{UnmountError, unmount_below};

/// Why the root could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A mount that the snapshotter asked for.
    #[error("mount {kind} {origin} at {}: {reason}", target.display())]
    Mount {
        /// Its file system's type.
        kind: String,
        /// Its source.
        origin: String,
        /// Where.
        target: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Where it is mounted.
    #[error("make {}", path.display())]
    Make {
        /// Which folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It stays mounted.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
}

/// Mounts the snapshotter's mounts at `target`, in their order.
///
/// # Errors
/// When one fails; those before it are for [`unmount`].
pub fn mount(mounts: &[Mount], target: &Path) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(target).map_err(|source| RootfsError::Make {
        path: target.to_owned(),
        source,
    })?;
    // On a thread of its own: to shorten a long list of layers the helper changes its thread's
    // working directory.
    thread::scope(|scope| {
        let mounted = scope.spawn(|| mounts.iter().try_for_each(|mount| mount_one(mount, target)));
        mounted.join().expect("the helper does not panic")
    })
}

fn mount_one(mount: &Mount, target: &Path) -> Result<(), RootfsError> {
    let mounted = mount_rootfs(
        Some(mount.type_.as_str()),
        Some(mount.source.as_str()),
        &mount.options,
        target,
    );
    mounted.map_err(|e| RootfsError::Mount {
        kind: mount.type_.clone(),
        origin: mount.source.clone(),
        target: target.to_owned(),
        reason: e.to_string(),
    })
}

/// Undoes [`mount`].
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> Result<(), RootfsError> {
    Ok(unmount_below(target)?)
}
