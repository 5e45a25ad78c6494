//! A sandbox's folder on the host: `/run/hull/NAMESPACE/ID`.
//!
//! ```text
//! processes      "PID START-TIME" of each process started for the sandbox, a line each
//! user           what hull-vmm runs as
//! folders/       where the shim makes what things are mounted on
//! shared/        the same, mounted read-only: what virtiofsd shows the guest
//!   ID/rootfs        the container's root file system, bind-mounted
//!   ID/mounts/N      its volumes, bind-mounted
//! console.log    what the guest's kernel says, with `debug_console`
//! ```
//! What is mounted here and which processes run can be found from the folder alone, after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::idmap::{self, IdMaps};
use crate::process_identity::ProcessIdentity;

/// Why the folder could not be made or undone.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A name that is not one path component.
    #[error("{0:?} cannot name a folder")]
    Name(String),
    /// The sandbox is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A file or folder in it.
    #[error("make {}", path.display())]
    Make {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A mount in it.
    #[error("mount {} for the guest", path.display())]
    Mount {
        /// What was to be mounted.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The owners of a mount in it.
    #[error("map the ids of {}, which its file system may not be able to", path.display())]
    IdMap {
        /// What was to be mounted.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something is still mounted.
    #[error("unmount {}", path.display())]
    Unmount {
        /// What is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The folder stays.
    #[error("remove {}", path.display())]
    Remove {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A sandbox's folder. It stays until [`StateDir::remove`].
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// How something of the host's is shared.
#[derive(Debug, PartialEq, Eq)]
pub struct Sharing {
    /// With all that is mounted below it.
    pub recursive: bool,
    /// Nobody can write through the share.
    pub read_only: bool,
    /// Whose files they are in the container, if not the same users'.
    pub id_maps: Option<IdMaps>,
}

impl StateDir {
    /// The folder of sandbox `id`, which may or may not be there.
    ///
    /// # Errors
    /// When a name is not one path component.
    pub fn at(state: &Path, namespace: &str, id: &str) -> Result<Self, StateError> {
        for name in [namespace, id] {
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
                return Err(StateError::Name(name.to_owned()));
            }
        }
        Ok(Self {
            path: state.join(namespace).join(id),
        })
    }

    /// Makes the folder, for root alone.
    ///
    /// # Errors
    /// When it is there already, or cannot be made.
    pub fn create(&self) -> Result<(), StateError> {
        let parent = self.path.parent().unwrap_or(&self.path);
        let make = |path: &Path, parents, mode| {
            DirBuilder::new()
                .mode(mode)
                .recursive(parents)
                .create(path)
                .map_err(|source| {
                    if source.kind() == io::ErrorKind::AlreadyExists {
                        StateError::Exists(path.to_owned())
                    } else {
                        StateError::Make {
                            path: path.to_owned(),
                            source,
                        }
                    }
                })
        };
        make(parent, true, 0o700)?;
        make(&self.path, false, 0o700)?;
        // The guest's root directory of the share: who is root in a user namespace there comes
        // through it. On the host it is behind the two above.
        make(&self.folders(), false, 0o711)?;
        make(&self.shared(), false, 0o711)
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where what things are mounted on is made.
    fn folders(&self) -> PathBuf {
        self.path.join("folders")
    }

    /// What the guest is shown.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.path.join("shared")
    }

    /// Makes the shared folder a mount of its own, from which what is mounted in it later reaches a
    /// virtiofsd that runs already. It is read-only: a guest that has taken over its kernel could put a
    /// link where the root of the next container is to be mounted, for the shim to follow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open_share(&self) -> Result<(), StateError> {
        let (folders, shared) = (self.folders(), self.shared());
        let mount = |flags| {
            let mounted =
                nix::mount::mount(Some(&folders), &shared, None::<&str>, flags, None::<&str>);
            mounted.map_err(|e| StateError::Mount {
                path: shared.clone(),
                source: e.into(),
            })
        };
        mount(MsFlags::MS_BIND)?;
        mount(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        // Of a group of its own: not of the host's, where all of it would be seen too.
        mount(MsFlags::MS_PRIVATE)?;
        mount(MsFlags::MS_SHARED)
    }

    /// Bind-mounts a directory or file of the host below the shared folder. `to` is relative, and
    /// nothing there is the guest's: no link can be followed.
    ///
    /// # Errors
    /// When `from` does not exist, or the kernel refuses.
    pub fn share(&self, from: &Path, to: &Path, sharing: &Sharing) -> Result<(), StateError> {
        let mount_error = |source: io::Error| StateError::Mount {
            path: from.to_owned(),
            source,
        };
        let is_directory = fs::metadata(from).map_err(mount_error)?.is_dir();
        let place = self.folders().join(to);
        let make_error = |source: io::Error| StateError::Make {
            path: place.clone(),
            source,
        };
        fs::create_dir_all(place.parent().unwrap_or(&place)).map_err(make_error)?;
        if is_directory {
            fs::create_dir(&place).map_err(make_error)?;
        } else {
            File::create_new(&place).map_err(make_error)?;
        }
        let target = self.shared().join(to);
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
            mounted.map_err(|source| StateError::IdMap {
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

    /// Undoes every [`StateDir::share`] below `to`. Nothing to do is no error.
    ///
    /// # Errors
    /// When something stays mounted; then nothing is removed, for it would be the host's.
    pub fn unshare(&self, to: &Path) -> Result<(), StateError> {
        unmount_below(&self.shared().join(to))?;
        let place = self.folders().join(to);
        match fs::remove_dir_all(&place) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Remove {
                path: place,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Whether something of others than container `id` is shared here.
    #[must_use]
    pub fn is_shared(&self, id: &str) -> bool {
        let mut entries = fs::read_dir(self.folders()).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name() != id)
    }

    /// Notes where the sandbox's shim listens, for containers that join it.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note_address(&self, address: &str) -> Result<(), StateError> {
        let path = self.path.join("address");
        fs::write(&path, address).map_err(|source| StateError::Make { path, source })
    }

    /// Where the sandbox's shim listens, once there is a sandbox.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        fs::read_to_string(self.path.join("address")).ok()
    }

    /// Notes that container `id` has joined the sandbox, so that its part is found after a crash: a
    /// link beside the folder. For the container that the folder is named after nothing is to be noted.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note_member(&self, id: &str) -> Result<(), StateError> {
        let path = self.path.with_file_name(id);
        let name = self.path.file_name().unwrap_or_default();
        if name == id {
            return Ok(());
        }
        std::os::unix::fs::symlink(name, &path).map_err(|source| StateError::Make { path, source })
    }

    /// Forgets what [`StateDir::note_member`] has noted.
    pub fn forget_member(&self, id: &str) {
        let path = self.path.with_file_name(id);
        if path.is_symlink() {
            let _ = fs::remove_file(&path);
            // The namespace's folder goes with what was last in it.
            let _ = path.parent().map(fs::remove_dir);
        }
    }

    /// The folder of the sandbox that this container has joined; its own if it has joined none.
    #[must_use]
    pub fn sandbox(&self) -> Self {
        match fs::read_link(&self.path) {
            Ok(name) => Self {
                path: self.path.with_file_name(name),
            },
            Err(_) => self.clone(),
        }
    }

    /// The sandboxes of a containerd namespace that there are.
    #[must_use]
    pub fn all(state: &Path, namespace: &str) -> Vec<Self> {
        let folders = fs::read_dir(state.join(namespace)).into_iter().flatten();
        folders
            .filter_map(|folder| {
                let folder = folder.ok()?;
                if !folder.file_type().ok()?.is_dir() {
                    return None;
                }
                Self::at(state, namespace, folder.file_name().to_str()?).ok()
            })
            .collect()
    }

    /// Notes a process that has to end with the sandbox, so that a later process can find it. One
    /// that has ended already needs no note.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note_process(&self, pid: u32) -> Result<(), StateError> {
        let Some(process) = ProcessIdentity::of(pid) else {
            return Ok(());
        };
        let path = self.path.join("processes");
        let noted = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{process}"));
        noted.map_err(|source| StateError::Make { path, source })
    }

    /// The noted processes that still run.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessIdentity> {
        let noted = fs::read_to_string(self.path.join("processes")).unwrap_or_default();
        noted
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(ProcessIdentity::is_running)
            .collect()
    }

    /// Unmounts all that is mounted in the folder and removes it. Nothing to do is no error.
    ///
    /// # Errors
    /// When something stays mounted; then nothing is removed, for it would be the host's.
    pub fn remove(&self) -> Result<(), StateError> {
        unmount_below(&self.path)?;
        match fs::remove_dir_all(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(StateError::Remove {
                    path: self.path.clone(),
                    source,
                });
            }
        }
        // The namespace's folder goes with its last sandbox.
        if let Some(parent) = self.path.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Unmounts everything at or below `path`, the last mounted first. The folder `path` is in may be
/// named through links, as `/var/run` is; `path` itself is not followed.
///
/// # Errors
/// When the kernel refuses one.
pub fn unmount_below(path: &Path) -> Result<(), StateError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let Ok(parent) = parent.canonicalize() else {
        // What is not there is no mount point.
        return Ok(());
    };
    let path = &parent.join(name);
    for point in mount_points(path).into_iter().rev() {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match nix::mount::umount2(&point, flags) {
            // Gone with one that was mounted over it.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => {
                return Err(StateError::Unmount {
                    path: point,
                    source: e.into(),
                });
            }
        }
    }
    match mount_points(path).pop() {
        None => Ok(()),
        Some(path) => Err(StateError::Unmount {
            path,
            source: io::ErrorKind::ResourceBusy.into(),
        }),
    }
}

/// Mount points at or below `path`, in the order in which they were mounted.
fn mount_points(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(path))
        .collect()
}

/// proc(5): space, tab, newline and backslash stand as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path(), "default", "tide").unwrap();
        state.create().unwrap();
        (root, state)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/a"] {
            assert!(
                StateDir::at(Path::new("/run/hull"), "default", name).is_err(),
                "{name}"
            );
            assert!(
                StateDir::at(Path::new("/run/hull"), name, "tide").is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_folder_is_made_once_and_removed_as_often_as_one_likes() {
        let (root, state) = state();
        assert!(matches!(state.create(), Err(StateError::Exists(_))));
        state.remove().unwrap();
        state.remove().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_container_that_has_joined_a_sandbox_leads_to_it() {
        let (root, state) = state();
        state.note_member("ebb").unwrap();
        let ebb = StateDir::at(root.path(), "default", "ebb").unwrap();
        assert_eq!(ebb.sandbox().path(), state.path());
        assert_eq!(state.sandbox().path(), state.path());
        let all = StateDir::all(root.path(), "default");
        assert_eq!(all.len(), 1, "{all:?}");
        ebb.remove().unwrap();
        assert!(state.path().exists());
        state.note_member("tide").unwrap();
        state.note_member("ebb").unwrap();
        state.forget_member("ebb");
        state.forget_member("tide");
        assert_eq!(ebb.sandbox().path(), ebb.path());
        assert!(state.path().exists());
    }

    #[test]
    fn only_processes_that_still_are_the_noted_ones_are_found() {
        let (_root, state) = state();
        let own = std::process::id();
        state.note_process(own).unwrap();
        let noted = state.path().join("processes");
        let mut text = fs::read_to_string(&noted).unwrap();
        text.push_str(&format!("{own} 1\n999999999 5\ngarbage\n"));
        fs::write(noted, text).unwrap();
        assert_eq!(state.processes(), [ProcessIdentity::of(own).unwrap()]);
    }

    #[test]
    fn mount_points_with_spaces_are_understood() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
    }
}
