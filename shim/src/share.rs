//! The folder that virtiofsd shows the guest.
//!
//! ```text
//! ID/rootfs            a container's root file system, bind-mounted
//! ID/mounts/N          links to its volumes
//! .volumes/N/volume    volumes, bind-mounted (`volumes`)
//! ```
//! Threat: a guest whose kernel is not its own any more, in front of virtiofsd, which is root. It could
//! put a link where the next container's root is to be mounted. So the folder is shown read-only, and
//! made from another side, `folders`, which the guest never sees; what is mounted has its own say.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::idmap::{self, IdMaps};
use crate::mount_points::{UnmountError, unmount_below};

/// Where volumes are. No container's id begins with a dot.
pub const VOLUMES: &str = ".volumes";

/// Why something cannot be shown to the guest, or hidden again.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A file or folder to mount on.
    #[error("make {}", path.display())]
    Make {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A mount.
    #[error("mount {} for the guest", path.display())]
    Mount {
        /// What was to be mounted.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The owners of a mount.
    #[error("map the ids of {}, which its file system may not be able to", path.display())]
    IdMap {
        /// What was to be mounted.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something is still mounted.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// A folder stays.
    #[error("remove {}", path.display())]
    Remove {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How something of the host's is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// With all that is mounted below it.
    pub recursive: bool,
    /// Nobody can write through the share.
    pub read_only: bool,
    /// Whose files they are in the container, if not the same users'.
    pub id_maps: Option<IdMaps>,
}

/// The folder, which is there as long as its sandbox is.
#[derive(Debug, Clone)]
pub struct Share {
    /// Where it is made.
    folders: PathBuf,
    /// What is shown.
    path: PathBuf,
}

impl Share {
    /// The one in a sandbox's folder `state`, which may or may not be there.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self {
            folders: state.join("folders"),
            path: state.join("shared"),
        }
    }

    /// Where it is for virtiofsd.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, empty, and a mount of its own, from which what is mounted in it later reaches a
    /// virtiofsd that runs already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(&self) -> Result<(), ShareError> {
        for path in [&self.folders, &self.path] {
            // The guest's root directory of the share: who is root in a user namespace there comes
            // through it. On the host it is behind folders for root alone.
            let made = DirBuilder::new().mode(0o711).create(path);
            made.map_err(|source| ShareError::Make {
                path: path.clone(),
                source,
            })?;
        }
        let (from, path) = (&self.folders, &self.path);
        let mount = |flags| {
            nix::mount::mount(Some(from), path, None::<&str>, flags, None::<&str>).map_err(|e| {
                ShareError::Mount {
                    path: path.clone(),
                    source: e.into(),
                }
            })
        };
        mount(MsFlags::MS_BIND)?;
        mount(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        // Of a group of its own: not of the host's, where all of it would be seen too.
        mount(MsFlags::MS_PRIVATE)?;
        mount(MsFlags::MS_SHARED)
    }

    /// Bind-mounts a directory or file of the host at `to` in the folder.
    ///
    /// # Errors
    /// When `from` does not exist, or the kernel refuses.
    pub fn add(&self, from: &Path, to: &Path, sharing: &Sharing) -> Result<(), ShareError> {
        let mount_error = |source: io::Error| ShareError::Mount {
            path: from.to_owned(),
            source,
        };
        let is_directory = fs::metadata(from).map_err(mount_error)?.is_dir();
        self.make(to, |path| {
            if is_directory {
                fs::create_dir(path)
            } else {
                File::create_new(path).map(drop)
            }
        })?;
        let target = self.path.join(to);
        let mount = |flags| {
            nix::mount::mount(Some(from), &target, None::<&str>, flags, None::<&str>)
                .map_err(|e| mount_error(e.into()))
        };
        let depth = if sharing.recursive {
            MsFlags::MS_REC
        } else {
            MsFlags::empty()
        };
        if let Some(maps) = &sharing.id_maps {
            let mounted = idmap::bind(from, &target, maps, sharing.recursive);
            mounted.map_err(|source| ShareError::IdMap {
                path: from.to_owned(),
                source,
            })?;
        } else {
            mount(MsFlags::MS_BIND | depth)?;
        }
        // Nothing that is mounted here later is to reach the host, but the host's mounts are to
        // reach the guest.
        mount(MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
        if sharing.read_only {
            mount(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        }
        Ok(())
    }

    /// Makes a link at `to` to what is at `place`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link(&self, place: &Path, to: &Path) -> Result<(), ShareError> {
        let folders = to.components().skip(1);
        let mut target: PathBuf = folders.map(|_| "..").collect();
        target.push(place);
        self.make(to, |path| symlink(&target, path))
    }

    /// Makes something at `to`, and the folders that it is in.
    fn make(
        &self,
        to: &Path,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), ShareError> {
        let path = self.folders.join(to);
        let folders = path.parent().map_or(Ok(()), fs::create_dir_all);
        let made = folders.and_then(|()| make(&path));
        made.map_err(|source| ShareError::Make { path, source })
    }

    /// Undoes every [`Share::add`] and [`Share::link`] below `to`. Nothing to do is no error.
    ///
    /// # Errors
    /// When something stays mounted; then nothing is removed, for it would be the host's.
    pub fn remove(&self, to: &Path) -> Result<(), ShareError> {
        unmount_below(&self.path.join(to))?;
        let target = self.folders.join(to);
        match fs::remove_dir_all(&target) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ShareError::Remove {
                path: target,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Whether something of others than container `id` is here.
    #[must_use]
    pub fn has_others(&self, id: &str) -> bool {
        let entries = fs::read_dir(&self.folders).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.any(|name| name != id && name != VOLUMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> (tempfile::TempDir, Share) {
        let state = tempfile::tempdir().unwrap();
        let share = Share::of(state.path());
        fs::create_dir(&share.folders).unwrap();
        (state, share)
    }

    #[test]
    fn a_link_leads_to_its_place_from_wherever_the_share_is_mounted() {
        let (state, share) = share();
        let place = Path::new(VOLUMES).join("3/volume");

        share.link(&place, Path::new("tide/mounts/0")).unwrap();

        let link = fs::read_link(state.path().join("folders/tide/mounts/0"));
        assert_eq!(link.unwrap(), Path::new("../../.volumes/3/volume"));
    }

    #[test]
    fn volumes_are_no_other_containers() {
        let (_state, share) = share();
        let place = Path::new(VOLUMES).join("0/volume");
        for id in ["tide", "ebb"] {
            share.link(&place, &Path::new(id).join("mounts/0")).unwrap();
        }
        share.make(&place, |path| fs::create_dir(path)).unwrap();

        assert!(share.has_others("tide"));
        share.remove(Path::new("ebb")).unwrap();
        assert!(!share.has_others("tide"));
    }
}
