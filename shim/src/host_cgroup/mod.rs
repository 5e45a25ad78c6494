//! The cgroup of the host that a sandbox's processes begin in: the one that the configuration of its first
//! container names (OCI runtime-spec 1.2 §linux, "Cgroups Path").
//!
//! A container's limits are kept in the guest. Of them the group has the weights alone, which mean something
//! beside other machines; other limits are those of the groups above, which are the engine's or an
//! administrator's (`docker run --cgroup-parent`).
//!
//! Where the engine leaves groups to systemd, it names a scope instead of a path, and systemd makes it.

mod systemd;
mod weights;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, warn};
use oci_spec::runtime::LinuxResources;
use tokio::process::Child;

use crate::error::chain;
use systemd::{Scope, SystemdError};
use weights::Weights;

/// Where the host's cgroups are (version 2).
const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that a group is given, as far as those above it have them.
const CONTROLLERS: [&str; 5] = ["cpu", "io", "memory", "pids", "cpuset"];

/// How long processes that were told to end may take to leave.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a sandbox has no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum HostCgroupError {
    /// It could lead out of the hierarchy.
    #[error("linux.cgroupsPath {} is no path of a cgroup", .0.display())]
    Path(PathBuf),
    /// systemd has no scope for it.
    #[error(
        "start the scope that linux.cgroupsPath {} names; without systemd, set the engine's cgroup driver to \"cgroupfs\"",
        path.display()
    )]
    Scope {
        /// As the configuration has it.
        path: PathBuf,
        /// What systemd said.
        #[source]
        source: Box<SystemdError>,
    },
    /// A scope has a process from its start, and there is none.
    #[error("start the first process of the scope of linux.cgroupsPath")]
    Holder(#[source] io::Error),
    /// The kernel refuses a group.
    #[error("make the cgroup {} of linux.cgroupsPath", path.display())]
    Make {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A cgroup of the host. It is there until it is removed.
#[derive(Debug)]
pub struct HostCgroup {
    path: PathBuf,
    maker: Maker,
}

/// Who has made a group, and so removes it.
#[derive(Debug)]
enum Maker {
    /// It was there before.
    Another,
    This,
    Systemd {
        scope: Scope,
        /// Keeps the scope while nobody else is in it.
        holder: Mutex<Option<Box<Child>>>,
    },
}

impl HostCgroup {
    /// Makes the group that a configuration names, and those above it, unless they are there, and sets the
    /// weights that are asked for. A path of systemd's form (`slice:prefix:name`) is a scope, for which
    /// `holder` starts a process that does nothing until it is dropped. Without a path, and on a host whose cgroups are of
    /// version 1, there is none: processes are where the shim is.
    ///
    /// # Errors
    /// When it is no path, or systemd or the kernel refuses it.
    pub async fn of(
        asked: Option<&Path>,
        resources: &LinuxResources,
        holder: impl FnOnce() -> io::Result<Child>,
    ) -> Result<Option<Self>, HostCgroupError> {
        let root = Path::new(ROOT);
        let Some(asked) = asked.filter(|_| is_version_2(root)) else {
            return Ok(None);
        };
        let weights = Weights::of(resources);
        if let Some(scope) = Scope::parse(asked) {
            let holder = holder().map_err(HostCgroupError::Holder)?;
            return Self::of_systemd(scope, asked, &weights, holder)
                .await
                .map(Some);
        }
        let group = Self::below(root, asked)?;
        if let Some(group) = &group {
            group.write(&weights);
        }
        Ok(group)
    }

    async fn of_systemd(
        scope: Scope,
        asked: &Path,
        weights: &Weights,
        holder: Child,
    ) -> Result<Self, HostCgroupError> {
        let error = |source| HostCgroupError::Scope {
            path: asked.to_owned(),
            source: Box::new(source),
        };
        let pid = holder.id().unwrap_or_default();
        scope.start(pid, weights).await.map_err(error)?;
        let path = group_of(pid).map_err(HostCgroupError::Holder)?;
        let holder = Mutex::new(Some(Box::new(holder)));
        Ok(Self {
            path,
            maker: Maker::Systemd { scope, holder },
        })
    }

    fn below(root: &Path, asked: &Path) -> Result<Option<Self>, HostCgroupError> {
        let relative = asked.strip_prefix("/").unwrap_or(asked);
        if relative.as_os_str().is_empty() {
            return Ok(None);
        }
        let mut path = root.to_owned();
        let mut maker = Maker::Another;
        for component in relative.components() {
            let Component::Normal(name) = component else {
                return Err(HostCgroupError::Path(asked.to_owned()));
            };
            hand_down_controllers(&path);
            path.push(name);
            maker = match fs::create_dir(&path) {
                Ok(()) => Maker::This,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Maker::Another,
                Err(source) => return Err(HostCgroupError::Make { path, source }),
            };
        }
        Ok(Some(Self { path, maker }))
    }

    /// The group that a sandbox left behind, whose path was noted.
    #[must_use]
    pub fn left(path: PathBuf) -> Self {
        let maker = Maker::This;
        Self { path, maker }
    }

    /// What is to be noted of it, if it is to be removed one day.
    #[must_use]
    pub fn note(&self) -> Option<&Path> {
        (!matches!(self.maker, Maker::Another)).then_some(&self.path)
    }

    /// A file to which a process writes `0` to move itself there (cgroup-v2.rst, "Processes").
    ///
    /// # Errors
    /// When the group is gone.
    pub fn entrance(&self) -> io::Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(path)
    }

    /// What its processes have read from the host's disks and written to them (cgroup-v2.rst, "io.stat"); nothing
    /// where that is not counted, or of a group that may be others', too.
    #[must_use]
    pub fn io(&self) -> Option<String> {
        self.note()
            .and_then(|path| fs::read_to_string(path.join("io.stat")).ok())
    }

    /// It has processes that stay, and goes on without its holder.
    pub fn settle(&self) {
        if let Maker::Systemd { holder, .. } = &self.maker {
            holder.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Sets the weights that are asked for, as far as the groups above have the controllers.
    pub async fn weigh(&self, resources: &LinuxResources) {
        let weights = Weights::of(resources);
        if let Maker::Systemd { scope, .. } = &self.maker {
            if let Err(e) = scope.weigh(&weights).await {
                warn!("weigh {}: {}", self.path.display(), chain(&e));
            }
        } else {
            self.write(&weights);
        }
    }

    fn write(&self, weights: &Weights) {
        for (file, text) in weights.files() {
            let path = self.path.join(file);
            let file = OpenOptions::new().write(true).open(&path);
            let set = file.and_then(|mut file| file.write_all(text.as_bytes()));
            match set {
                Err(e) if e.kind() == io::ErrorKind::NotFound => debug!("no {}", path.display()),
                Err(e) => warn!("set {} to {text}: {e}", path.display()),
                Ok(()) => {}
            }
        }
    }

    /// Removes it, if it was made for the sandbox, as soon as it is empty. One that others have entered stays.
    pub fn remove(&self) {
        self.settle();
        let deadline = Instant::now() + PATIENCE;
        // systemd sees that a scope is empty, and removes it; had it been removed before, systemd might not see.
        let systemds = self.path.extension().is_some_and(|of| of == "scope");
        while self.note().is_some() && self.path.exists() {
            let over = Instant::now() > deadline;
            if !systemds || over {
                match fs::remove_dir(&self.path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                    Err(e) if over || e.kind() != io::ErrorKind::ResourceBusy => {
                        return warn!("remove the cgroup {}: {e}", self.path.display());
                    }
                    Ok(()) | Err(_) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn is_version_2(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// The group that a process is in (`cgroup(7)`, "/proc/pid/cgroup": version 2 has number 0).
fn group_of(pid: u32) -> io::Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.ok_or(io::ErrorKind::NotFound)?;
    Ok(Path::new(ROOT).join(group))
}

/// Has the groups below `path` have its controllers. A group with processes of its own cannot, nor one whose
/// own parent does not: then what is below has no weights.
fn hand_down_controllers(path: &Path) {
    let there = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in there.split_whitespace() {
        if CONTROLLERS.contains(&controller) {
            let given = fs::write(
                path.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
            if let Err(e) = given {
                debug!("{controller} below {}: {e}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu misc\n").unwrap();
        root
    }

    #[test]
    fn a_group_is_made_where_it_is_asked_for_and_removed_once_it_is_empty() {
        let root = hierarchy();
        let group = HostCgroup::below(root.path(), Path::new("/sea/tide"));
        let group = group.unwrap().unwrap();
        assert_eq!(group.note(), Some(&*root.path().join("sea/tide")));

        let counted = "7:0 rbytes=4096\n";
        let file = root.path().join("sea/tide/io.stat");
        assert_eq!(group.io(), None);
        fs::write(&file, counted).unwrap();
        assert_eq!(group.io().as_deref(), Some(counted));

        let again = HostCgroup::below(root.path(), Path::new("sea/tide"));
        let again = again.unwrap().unwrap();
        assert_eq!(again.note(), None);
        assert_eq!(again.io(), None);
        fs::remove_file(file).unwrap();
        again.remove();
        assert!(root.path().join("sea/tide").is_dir());

        let handed_down = fs::read_to_string(root.path().join("cgroup.subtree_control"));
        assert_eq!(handed_down.unwrap(), "+cpu");
        group.remove();
        group.remove();
        assert!(!root.path().join("sea/tide").exists());
        assert!(root.path().join("sea").is_dir());
    }

    #[test]
    fn no_path_means_no_group_and_one_that_leads_elsewhere_is_refused() {
        let root = hierarchy();
        for asked in ["", "/"] {
            let group = HostCgroup::below(root.path(), Path::new(asked)).unwrap();
            assert!(group.is_none(), "{asked}");
        }
        for asked in ["../sea", "/sea/../../tide", "/.."] {
            let error = HostCgroup::below(root.path(), Path::new(asked)).unwrap_err();
            assert!(error.to_string().contains(asked), "{error}");
        }
        let version_1 = tempfile::tempdir().unwrap();
        assert!(!is_version_2(version_1.path()));
        assert!(is_version_2(root.path()));
    }
}
