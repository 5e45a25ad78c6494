//! The cgroup of the host that a sandbox's processes begin in: the one that the configuration of its first
//! container names (OCI runtime-spec 1.2 §linux, "Cgroups Path").
//!
//! A container's limits are kept in the guest. Of them the group has the weights alone, which mean something
//! beside other machines; other limits are those of the groups above, which are the engine's or an
//! administrator's (`docker run --cgroup-parent`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, warn};
use oci_spec::runtime::LinuxResources;

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
    /// It was not there before, so it is to be removed.
    made: bool,
}

impl HostCgroup {
    /// Makes the group that a configuration names, and those above it, unless they are there. Without a
    /// path, with one for systemd (`slice:prefix:name`), and on a host whose cgroups are of version 1, there is
    /// none: processes are where the shim is.
    ///
    /// # Errors
    /// When it is no path, or the kernel refuses it.
    pub fn of(asked: Option<&Path>) -> Result<Option<Self>, HostCgroupError> {
        match asked {
            Some(asked) => Self::below(Path::new(ROOT), asked),
            None => Ok(None),
        }
    }

    fn below(root: &Path, asked: &Path) -> Result<Option<Self>, HostCgroupError> {
        let relative = asked.strip_prefix("/").unwrap_or(asked);
        let is_version_2 = root.join("cgroup.controllers").exists();
        if relative.as_os_str().is_empty() || is_systemds(asked) || !is_version_2 {
            return Ok(None);
        }
        let mut path = root.to_owned();
        let mut made = false;
        for component in relative.components() {
            let Component::Normal(name) = component else {
                return Err(HostCgroupError::Path(asked.to_owned()));
            };
            hand_down_controllers(&path);
            path.push(name);
            made = match fs::create_dir(&path) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(source) => return Err(HostCgroupError::Make { path, source }),
            };
        }
        Ok(Some(Self { path, made }))
    }

    /// The group that a sandbox left behind, whose path was noted.
    #[must_use]
    pub fn left(path: PathBuf) -> Self {
        Self { path, made: true }
    }

    /// What is to be noted of it, if it is to be removed one day.
    #[must_use]
    pub fn note(&self) -> Option<&Path> {
        self.made.then_some(&self.path)
    }

    /// A file to which a process writes `0` to move itself there (cgroup-v2.rst, "Processes").
    ///
    /// # Errors
    /// When the group is gone.
    pub fn entrance(&self) -> io::Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(path)
    }

    /// Sets the weights that are asked for, as far as the groups above have the controllers.
    pub fn weigh(&self, resources: &LinuxResources) {
        for (file, text) in weights(resources) {
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

    /// Removes it, if it was made here, as soon as it is empty. One that others have entered stays.
    pub fn remove(&self) {
        if !self.made {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return warn!("remove the cgroup {}: {e}", self.path.display());
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// Whether a path is one for systemd's driver: `slice:prefix:name`.
fn is_systemds(path: &Path) -> bool {
    !path.is_absolute() && path.to_string_lossy().matches(':').count() == 2
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

/// The files of a group that resources mean, with what is to be written.
fn weights(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let cpu = resources.cpu().as_ref();
    let shares = cpu.and_then(oci_spec::runtime::LinuxCpu::shares);
    let block = resources.block_io().as_ref();
    let block = block.and_then(oci_spec::runtime::LinuxBlockIo::weight);
    let cpu_weight = shares.filter(|&shares| shares > 0).map(cpu_weight);
    let block = block.filter(|&weight| weight > 0);
    // Each is for one of the kernel's ways to share a disk; a kernel may have neither.
    let weights = [
        ("cpu.weight", cpu_weight),
        ("io.bfq.weight", block.map(u64::from)),
        ("io.weight", block.map(io_weight)),
    ];
    let asked = weights.into_iter();
    asked
        .filter_map(|(file, weight)| Some((file, weight?.to_string())))
        .collect()
}

/// `cpu.weight`, 1 to 10000, of the shares of cgroup version 1, 2 to 262144: as runc 1.1 and crun have it.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// `io.weight`, 1 to 10000, of a weight of cgroup version 1, 10 to 1000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

        let again = HostCgroup::below(root.path(), Path::new("sea/tide"));
        let again = again.unwrap().unwrap();
        assert_eq!(again.note(), None);
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
    fn no_path_and_systemds_mean_no_group_and_others_are_refused() {
        let root = hierarchy();
        for asked in ["", "/", "system.slice:docker:0f", ":libpod:1"] {
            let group = HostCgroup::below(root.path(), Path::new(asked)).unwrap();
            assert!(group.is_none(), "{asked}");
        }
        for asked in ["../sea", "/sea/../../tide", "/.."] {
            let error = HostCgroup::below(root.path(), Path::new(asked)).unwrap_err();
            assert!(error.to_string().contains(asked), "{error}");
        }
        assert!(HostCgroup::of(None).unwrap().is_none());
        let version_1 = tempfile::tempdir().unwrap();
        let group = HostCgroup::below(version_1.path(), Path::new("/sea")).unwrap();
        assert!(group.is_none());
    }

    #[test]
    fn weights_are_those_of_version_2() {
        let told = |json| weights(&serde_json::from_value(json).unwrap());
        for (shares, weight) in [(1, "1"), (2, "1"), (1024, "39"), (u64::MAX, "10000")] {
            let asked = told(json!({ "cpu": { "shares": shares } }));
            assert_eq!(asked, [("cpu.weight", weight.to_owned())]);
        }
        for (weight, version_2) in [(10, "1"), (500, "4950"), (1000, "10000")] {
            let asked = told(json!({ "blockIO": { "weight": weight } }));
            let both = [
                ("io.bfq.weight", weight.to_string()),
                ("io.weight", version_2.to_owned()),
            ];
            assert_eq!(asked, both);
        }
        let none = json!({ "cpu": { "shares": 0, "quota": 1000 }, "blockIO": { "weight": 0 } });
        assert_eq!(told(none), []);
    }
}
