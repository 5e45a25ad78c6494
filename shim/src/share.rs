//! What a sandbox's guest is shown of the host's files, by virtiofsd.
//!
//! ```text
//! folders/         where the shim makes what things are mounted on
//! shared/          the same, mounted read-only: the guest's share
//!   roots/ID         a container's root file system, bind-mounted
//!   volumes/N        a directory or file that containers have volumes of, likewise
//! ```
//! What several containers of the machine have as a volume, and in one manner, is there once. virtiofsd
//! tells files apart by the mount they are seen through: of two mounts of one directory the guest would
//! have two files for each, with locks, pages and sockets of their own.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use log::warn;
use nix::mount::MsFlags;

use crate::bind_mount::{self, Manner};
use crate::bundle::Volume;
use crate::error::chain;
use crate::mount_points::{UnmountError, unmount_below};
use crate::removal::remove_all;
use crate::state_dir::StateDir;

/// Why the guest cannot be shown something.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// What is to be shown.
    #[error("find {}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What it is mounted on.
    #[error("make {}", path.display())]
    Make {
        /// Which.
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
    /// A mount that stays.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// What it was mounted on.
    #[error("remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The share of one sandbox.
#[derive(Debug)]
pub struct Share {
    folders: PathBuf,
    shared: PathBuf,
    volumes: Mutex<Volumes>,
}

/// What there is in `volumes`.
#[derive(Debug, Default)]
struct Volumes {
    /// Names are numbers, none of which is used twice.
    next: u64,
    shown: Vec<Shown>,
}

/// A directory or file that some containers have volumes of.
#[derive(Debug)]
struct Shown {
    /// Relative to the share.
    place: PathBuf,
    origin: Origin,
    /// Ids of the containers.
    users: Vec<String>,
}

/// What makes two volumes one.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    path: PathBuf,
    /// A path may mean something else tomorrow.
    device: u64,
    inode: u64,
    manner: Manner,
}

impl Share {
    /// The share of the sandbox with this folder. It becomes a mount of its own, from which what is
    /// mounted in it later reaches a virtiofsd that runs already. It is read-only: a guest that has taken
    /// over its kernel could put a link where the root of the next container is to be mounted, for the
    /// shim to follow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(state: &StateDir) -> Result<Self, ShareError> {
        let share = Self::at(state);
        let mount = |flags| {
            let (folders, shared) = (Some(&share.folders), &share.shared);
            let mounted = nix::mount::mount(folders, shared, None::<&str>, flags, None::<&str>);
            mounted.map_err(|e| ShareError::Mount {
                path: shared.clone(),
                source: e.into(),
            })
        };
        mount(MsFlags::MS_BIND)?;
        mount(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        // Of a group of its own: not of the host's, where all of it would be seen too.
        mount(MsFlags::MS_PRIVATE)?;
        mount(MsFlags::MS_SHARED)?;
        Ok(share)
    }

    /// The share without its mount.
    pub(crate) fn at(state: &StateDir) -> Self {
        Self {
            folders: state.folders(),
            shared: state.shared(),
            volumes: Mutex::default(),
        }
    }

    /// Shows the guest container `id`'s root, which is at `root` on the host, and its volumes; tells
    /// where on the share each of those is. What fails half-way is for [`Share::remove`].
    ///
    /// # Errors
    /// When one of them does not exist or cannot be mounted.
    pub fn add(
        &self,
        id: &str,
        root: &Path,
        volumes: &[Volume],
    ) -> Result<Vec<PathBuf>, ShareError> {
        let whole = Manner {
            recursive: true,
            ..Manner::default()
        };
        self.mount(&Origin::of(root, &whole)?, &root_place(id))?;
        let mut table = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes
            .iter()
            .map(|volume| self.add_volume(&mut table, id, volume))
            .collect()
    }

    fn add_volume(
        &self,
        table: &mut Volumes,
        id: &str,
        volume: &Volume,
    ) -> Result<PathBuf, ShareError> {
        let origin = Origin::of(&volume.source, &volume.manner)?;
        if let Some(shown) = table.shown.iter_mut().find(|shown| shown.origin == origin) {
            shown.users.push(id.to_owned());
            return Ok(shown.place.clone());
        }
        let place = Path::new("volumes").join(table.next.to_string());
        table.next += 1;
        self.mount(&origin, &place)?;
        table.shown.push(Shown {
            place: place.clone(),
            origin,
            users: vec![id.to_owned()],
        });
        Ok(place)
    }

    /// Undoes [`Share::add`], in a sandbox that goes on. Nothing to do is no error.
    ///
    /// # Errors
    /// When something stays mounted; then it may be asked again.
    pub fn remove(&self, id: &str) -> Result<(), ShareError> {
        let mut table = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        for shown in &mut table.shown {
            shown.users.retain(|user| user != id);
        }
        while let Some(at) = table.shown.iter().position(|shown| shown.users.is_empty()) {
            self.unmount(&table.shown[at].place)?;
            table.shown.swap_remove(at);
        }
        self.unmount(&root_place(id))
    }

    /// Whether the sandbox with this folder shows something of others than container `id`.
    #[must_use]
    pub fn has_others(state: &StateDir, id: &str) -> bool {
        let roots = fs::read_dir(state.folders().join(ROOTS));
        let mut roots = roots.into_iter().flatten().flatten();
        roots.any(|root| root.file_name() != id)
    }

    /// Bind-mounts a directory or file of the host. Nothing at `place` is the guest's: no link can be
    /// followed. If that fails, nothing of it is left.
    fn mount(&self, origin: &Origin, place: &Path) -> Result<(), ShareError> {
        let mounted = self.try_mount(origin, place);
        if mounted.is_err()
            && let Err(e) = self.unmount(place)
        {
            warn!("clean up after a failed mount: {}", chain(&e));
        }
        mounted
    }

    fn try_mount(&self, origin: &Origin, place: &Path) -> Result<(), ShareError> {
        let from = &origin.path;
        let folder = self.folders.join(place);
        let make_error = |source: io::Error| ShareError::Make {
            path: folder.clone(),
            source,
        };
        fs::create_dir_all(folder.parent().unwrap_or(&folder)).map_err(make_error)?;
        if metadata(from)?.is_dir() {
            fs::create_dir(&folder).map_err(make_error)?;
        } else {
            File::create_new(&folder).map_err(make_error)?;
        }
        bind_mount::bind(from, &self.shared.join(place), &origin.manner).map_err(|source| {
            let path = from.clone();
            match origin.manner.id_maps {
                None => ShareError::Mount { path, source },
                Some(_) => ShareError::IdMap { path, source },
            }
        })
    }

    fn unmount(&self, place: &Path) -> Result<(), ShareError> {
        unmount_below(&self.shared.join(place))?;
        let folder = self.folders.join(place);
        remove_all(&folder).map_err(|source| ShareError::Remove {
            path: folder,
            source,
        })
    }
}

/// Where the root file systems are.
const ROOTS: &str = "roots";

/// Where on the share container `id`'s root file system is.
#[must_use]
pub fn root_place(id: &str) -> PathBuf {
    Path::new(ROOTS).join(id)
}

impl Origin {
    fn of(path: &Path, manner: &Manner) -> Result<Self, ShareError> {
        let found = metadata(path)?;
        let kind = found.file_type();
        if !kind.is_dir() && !kind.is_file() {
            warn!(
                "{} is no file or directory: whoever is at its other end on the host is not there for the guest's kernel",
                path.display()
            );
        }
        // What mount(2) would follow.
        let path = path.canonicalize().map_err(|e| missing(path, e))?;
        Ok(Self {
            path,
            device: found.dev(),
            inode: found.ino(),
            manner: manner.clone(),
        })
    }
}

fn metadata(path: &Path) -> Result<Metadata, ShareError> {
    fs::metadata(path).map_err(|e| missing(path, e))
}

fn missing(path: &Path, source: io::Error) -> ShareError {
    ShareError::Missing {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_is_one_origin_by_whatever_path_and_another_in_its_place_is_not() {
        let root = tempfile::tempdir().unwrap();
        let (sea, way) = (root.path().join("sea"), root.path().join("way"));
        fs::create_dir(&sea).unwrap();
        std::os::unix::fs::symlink(&sea, &way).unwrap();
        let (plain, read_only) = (
            Manner::default(),
            Manner {
                read_only: true,
                ..Manner::default()
            },
        );
        let origin = |path: &Path| Origin::of(path, &plain).unwrap();
        let first = origin(&sea);
        assert_eq!(first, origin(&way));
        assert_ne!(first, Origin::of(&sea, &read_only).unwrap());
        fs::rename(&sea, root.path().join("old")).unwrap();
        fs::create_dir(&sea).unwrap();
        assert_ne!(first, origin(&sea));
        let lost = Origin::of(&root.path().join("none"), &plain).unwrap_err();
        assert!(lost.to_string().ends_with("/none"), "{lost}");
    }

    #[test]
    fn a_machine_of_one_container_shows_nothing_of_others() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path(), "default", "tide").unwrap();
        assert!(!Share::has_others(&state, "tide"));
        fs::create_dir_all(state.folders().join(root_place("tide"))).unwrap();
        assert!(!Share::has_others(&state, "tide"));
        fs::create_dir_all(state.folders().join(root_place("ebb"))).unwrap();
        assert!(Share::has_others(&state, "tide"));
    }
}
