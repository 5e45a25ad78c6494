//! A container's root file system and volumes, mounted on the host and shown to the guest.
//!
//! The snapshotter's mounts go where containerd and `docker cp` look for them, `rootfs` in the
//! bundle; the guest is shown bind mounts of it and of the volumes.

use std::path::{Path, PathBuf};
use std::thread;

use containerd_shim::mount::mount_rootfs;
use containerd_shim::protos::api::Mount;

use crate::bundle::Volume;
use crate::state_dir::{Sharing, StateDir, StateError, unmount_below};

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
    /// There is no root.
    #[error("root file system {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The sandbox's folder.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Mounts the snapshotter's mounts at `target`, in their order.
///
/// # Errors
/// When one fails; those before it are for [`unmount`].
pub fn mount(mounts: &[Mount], target: &Path) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(target).map_err(|source| RootfsError::Missing {
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

/// Shows the guest a container's root, which is at `root` on the host, and its volumes. The folder's
/// share is open.
///
/// # Errors
/// When one of them does not exist or cannot be mounted.
pub fn share(
    state: &StateDir,
    id: &str,
    root: &Path,
    volumes: &[Volume],
) -> Result<(), RootfsError> {
    std::fs::metadata(root).map_err(|source| RootfsError::Missing {
        path: root.to_owned(),
        source,
    })?;
    let base = Path::new(id);
    let whole = Sharing {
        recursive: true,
        read_only: false,
        id_maps: None,
    };
    state.share(root, &base.join("rootfs"), &whole)?;
    for volume in volumes {
        state.share(
            &volume.source,
            &base.join("mounts").join(&volume.name),
            &volume.sharing,
        )?;
    }
    Ok(())
}

/// Undoes [`share`], in a sandbox that goes on.
///
/// # Errors
/// When the kernel refuses.
pub fn unshare(state: &StateDir, id: &str) -> Result<(), RootfsError> {
    Ok(state.unshare(Path::new(id))?)
}

/// Undoes [`mount`].
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(target: &Path) -> Result<(), RootfsError> {
    Ok(unmount_below(target)?)
}
