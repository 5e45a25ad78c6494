//! A sandbox's folder on the host: `/run/hull/NAMESPACE/ID`.
//!
//! ```text
//! processes      "PID START-TIME" of each process started for the sandbox, a line each
//! address        where its shim listens
//! containerd     the one that it is of: its address, and the folder of its bundles
//! user           what hull-vmm runs as
//! cgroup         the one that was made for the sandbox
//! folders/       where the shim makes what things are mounted on
//! shared/        the same, mounted read-only: what virtiofsd shows the guest (`share`)
//! console.log    what the guest's kernel says, with `debug_console`
//! ```
//! What is mounted here and which processes run can be found from the folder alone, after a crash.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::instance::{InUse, Instance};
use crate::mount_points::{UnmountError, unmount_below};
use crate::process_identity::ProcessIdentity;
use crate::removal::remove_all;

/// How often a folder that others take away is made again.
const TRIES: usize = 100;

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
    /// Something is still mounted in it.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
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
        let mut tries = 0..TRIES;
        loop {
            make(parent, true, 0o700)?;
            match make(&self.path, false, 0o700) {
                // The last sandbox of the namespace has just taken the namespace's folder along.
                Err(StateError::Make { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
                made => break made?,
            }
        }
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
    #[must_use]
    pub fn folders(&self) -> PathBuf {
        self.path.join("folders")
    }

    /// What the guest is shown.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.path.join("shared")
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

    /// Notes which containerd the sandbox is of.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note_instance(&self, instance: &Instance) -> Result<(), StateError> {
        let path = self.path.join("containerd");
        fs::write(&path, instance.to_string()).map_err(|source| StateError::Make { path, source })
    }

    /// Whether the sandbox is this containerd's, or nobody's: it is not there, or of an earlier Hull.
    ///
    /// # Errors
    /// When it is another's.
    pub fn check_is_of(&self, instance: &Instance) -> Result<(), InUse> {
        let noted = fs::read_to_string(self.path.join("containerd")).ok();
        let noted: Option<Instance> = noted.and_then(|noted| noted.parse().ok());
        match noted.filter(|noted| !noted.is(instance)) {
            None => Ok(()),
            Some(other) => Err(InUse {
                sandbox: self.name(),
                address: other.address(),
            }),
        }
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

    /// Its name, with the containerd namespace's.
    #[must_use]
    pub fn name(&self) -> String {
        let name = |path: Option<&Path>| {
            let name = path.and_then(Path::file_name).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        format!("{}/{}", name(self.path.parent()), name(Some(&self.path)))
    }

    /// The sandboxes of all containerd namespaces that there are.
    #[must_use]
    pub fn everywhere(state: &Path) -> Vec<Self> {
        let namespaces = fs::read_dir(state).into_iter().flatten();
        namespaces
            .filter_map(|namespace| namespace.ok()?.file_name().into_string().ok())
            .flat_map(|namespace| Self::all(state, &namespace))
            .collect()
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

    /// Notes a cgroup that has to go when the sandbox is over.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn note_cgroup(&self, cgroup: &Path) -> Result<(), StateError> {
        let path = self.path.join("cgroup");
        fs::write(&path, cgroup.as_os_str().as_bytes())
            .map_err(|source| StateError::Make { path, source })
    }

    /// The noted cgroup.
    #[must_use]
    pub fn cgroup(&self) -> Option<PathBuf> {
        let noted = fs::read(self.path.join("cgroup")).ok()?;
        Some(PathBuf::from(OsString::from_vec(noted)))
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
        remove_all(&self.path).map_err(|source| StateError::Remove {
            path: self.path.clone(),
            source,
        })?;
        // The namespace's folder goes with its last sandbox.
        if let Some(parent) = self.path.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
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
    fn the_last_of_a_namespace_takes_no_new_sandbox_along() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for id in ["ebb", "flow"] {
                let state = StateDir::at(root.path(), "default", id).unwrap();
                scope.spawn(move || {
                    for _ in 0..300 {
                        state.create().unwrap();
                        state.remove().unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
