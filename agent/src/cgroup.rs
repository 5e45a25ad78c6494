//! A container's cgroup (Documentation/admin-guide/cgroup-v2.rst).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::sys;

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup above all containers'.
pub const CONTAINERS: &str = "/sys/fs/cgroup/hull";

/// The files the shim turns into metrics.
const STATS: [&str; 12] = [
    "cpu.stat",
    "memory.current",
    "memory.stat",
    "memory.max",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "memory.events",
    "pids.current",
    "pids.max",
    "io.stat",
    "pids.events",
];

/// The files of a cgroup that who it is delegated to may write, a name in each line
/// (Documentation/admin-guide/cgroup-v2.rst, "Model of Delegation").
const DELEGATED: &str = "/sys/kernel/cgroup/delegate";

/// How deep the cgroups of a container may be nested, and how many there may be: more than systemd and
/// container engines in it make, and few enough to be looked at and removed one by one.
const MAX_DEPTH: &str = "64";
const MAX_DESCENDANTS: &str = "10000";

/// How long a cgroup may take to freeze or to empty. Only a process in uninterruptible sleep takes
/// more than a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of it.
    #[error("{action} {}", path.display())]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel has not done it in time.
    #[error("cgroup {} is not {state} after {PATIENCE:?}", path.display())]
    Timeout {
        /// Which cgroup.
        path: PathBuf,
        /// `frozen`, `thawed` or `empty`.
        state: &'static str,
    },
}

/// One cgroup, by its directory; it need not exist.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// The cgroup at an absolute path of the hierarchy.
    pub fn at(path: &Path) -> Self {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Self {
            directory: Path::new(ROOT).join(relative),
        }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bounds the cgroups that the container may make below it.
    ///
    /// # Errors
    /// `File`.
    pub fn bound(&self) -> Result<(), CgroupError> {
        self.write("cgroup.max.depth", MAX_DEPTH)?;
        self.write("cgroup.max.descendants", MAX_DESCENDANTS)
    }

    /// Gives it to a user, with what is the user's to write then: not its bounds.
    ///
    /// # Errors
    /// `File`.
    pub fn give_to(&self, uid: u32) -> Result<(), CgroupError> {
        let names = fs::read_to_string(DELEGATED)
            .map_err(|source| file_error("read", DELEGATED.into(), source))?;
        let files = names.lines().map(|name| self.directory.join(name));
        for path in files.chain([self.directory.clone()]) {
            match chown(&path, Some(uid), None) {
                // Of a controller that the cgroup does not have.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.map_err(|source| file_error("give away", path, source))?,
            }
        }
        Ok(())
    }

    /// Whether a process is in it or in a cgroup below.
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.directory.join("cgroup.events"));
        events.is_ok_and(|events| value_of(&events, "populated") == Some(1))
    }

    /// Processes in it and in the cgroups below, which the container may have made, but for those whose
    /// path is too long for the kernel.
    ///
    /// # Errors
    /// `File`.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let file = directory.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // Gone since it was listed, or a threaded cgroup, whose processes its parent lists.
                Err(error) if directory != self.directory => {
                    log::debug!("{}: {error}", file.display());
                }
                Err(source) => return Err(file_error("read", file, source)),
            }
        }
        Ok(pids)
    }

    /// The cgroup below, relative to this one, that a process which is added belongs in: once the
    /// container has given controllers to cgroups of its own, no process can be beside those ("No Internal Process
    /// Constraint"), and it goes to the container's init. `None` is this cgroup itself.
    pub fn place_beside(&self, init: i32) -> Option<String> {
        let read = |file: &Path| fs::read_to_string(file).ok();
        let given = read(&self.directory.join("cgroup.subtree_control"))?;
        if given.trim().is_empty() {
            return None;
        }
        let own = Path::new("/").join(self.directory.strip_prefix(ROOT).ok()?);
        place_below(&own, &read(Path::new(&format!("/proc/{init}/cgroup")))?)
    }

    /// What its files say, of those that exist.
    pub fn stats(&self) -> HashMap<String, String> {
        let files = STATS.iter().filter_map(|name| {
            let text = fs::read_to_string(self.directory.join(name)).ok()?;
            Some(((*name).to_owned(), text))
        });
        files.collect()
    }

    /// Sends SIGKILL to every process in it, also to those being forked.
    ///
    /// # Errors
    /// `File`.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Freezes or thaws it, and returns when that has happened. What cannot be frozen whole is thawed.
    ///
    /// # Errors
    /// `File` and `Timeout`.
    pub async fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let done = self.try_set_frozen(frozen).await;
        if frozen && done.is_err() {
            // If this fails, too, `is_frozen` says so.
            let _ = self.write("cgroup.freeze", "0");
        }
        done
    }

    /// Whether it was told to freeze, last.
    pub fn is_frozen(&self) -> bool {
        let told = fs::read_to_string(self.directory.join("cgroup.freeze"));
        told.is_ok_and(|told| told.trim() == "1")
    }

    async fn try_set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let state = if frozen { "frozen" } else { "thawed" };
        let wanted = u64::from(frozen);
        self.until("cgroup.events", state, |events| {
            value_of(events, "frozen") == Some(wanted)
        })
        .await
    }

    /// Kills what is left in it and removes it with the cgroups below. It may not exist.
    ///
    /// # Errors
    /// `File` and `Timeout`.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        if !self.directory.exists() {
            return Ok(());
        }
        self.kill()?;
        self.until("cgroup.events", "empty", |events| {
            value_of(events, "populated") == Some(0)
        })
        .await?;
        remove_tree(CWD, self.directory.as_os_str())
            .map_err(|source| file_error("remove", self.directory.clone(), source))
    }

    /// Watches for processes that the kernel kills for memory.
    pub fn oom_watch(&self) -> CountWatch {
        self.watch("memory.events", "oom_kill")
    }

    /// Watches for its own use of more memory than [`Cgroup::set_high`] has it.
    pub fn high_watch(&self) -> CountWatch {
        self.watch("memory.events.local", "high")
    }

    fn watch(&self, file: &'static str, key: &'static str) -> CountWatch {
        CountWatch {
            file: self.directory.join(file),
            key,
            seen: AtomicU64::new(0),
        }
    }

    /// Makes its processes wait where they use more memory than `bytes`, or `max`. Returns only when
    /// the kernel has reclaimed what is in use beyond that, as far as it can.
    ///
    /// # Errors
    /// `File`.
    pub fn set_high(&self, bytes: &str) -> Result<(), CgroupError> {
        self.write("memory.high", bytes)
    }

    /// Its directories, parents before children, but for those whose path is too long.
    fn tree(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut directories = vec![self.directory.clone()];
        let mut next = 0;
        while let Some(directory) = directories.get(next).cloned() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if next > 0 && is_gone_or_too_long(&error) => {
                    next += 1;
                    continue;
                }
                Err(source) => return Err(file_error("list", directory, source)),
            };
            let entries = entries.flatten();
            let children = entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
            directories.extend(children.map(|entry| entry.path()));
            next += 1;
        }
        Ok(directories)
    }

    /// Waits until a file that notifies its readers says what is wanted.
    async fn until(
        &self,
        file: &'static str,
        state: &'static str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), CgroupError> {
        let path = self.directory.join(file);
        let changed = wait_for(&path, wanted);
        match tokio::time::timeout(PATIENCE, changed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(file_error("watch", path, source)),
            Err(_) => Err(CgroupError::Timeout {
                path: self.directory.clone(),
                state,
            }),
        }
    }

    fn write(&self, file: &'static str, value: &str) -> Result<(), CgroupError> {
        let path = self.directory.join(file);
        fs::write(&path, value).map_err(|source| file_error("write", path, source))
    }
}

/// What the kernel counts of one cgroup, such as the processes that it killed for memory.
#[derive(Debug)]
pub struct CountWatch {
    file: PathBuf,
    key: &'static str,
    /// How many have been told. One thread uses it, so every ordering will do.
    seen: AtomicU64,
}

impl CountWatch {
    /// Whether there were more since this was last asked.
    pub fn is_new(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|events| self.are_new(&events))
    }

    /// Completes when there are some that nobody has been told of.
    ///
    /// # Errors
    /// What reading or watching the file says, e.g. `ENODEV` once the cgroup is removed.
    pub async fn happened(&self) -> io::Result<()> {
        wait_for(&self.file, |events| self.are_new(events)).await
    }

    fn are_new(&self, events: &str) -> bool {
        let count = value_of(events, self.key).unwrap_or(0);
        self.seen.swap(count, Ordering::Relaxed) < count
    }
}

/// Reads a cgroup file again each time the kernel says that it has changed (it polls as POLLPRI).
async fn wait_for(path: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    let file = sys::watch(OwnedFd::from(File::open(path)?), Interest::PRIORITY)?;
    let mut buffer = [0; 4096];
    loop {
        // The kernel compares with the last read (kernfs_fop_poll), so nothing is missed between
        // this read and the wait.
        let count = rustix::io::pread(file.get_ref(), &mut buffer, 0)?;
        if wanted(&String::from_utf8_lossy(&buffer[..count])) {
            return Ok(());
        }
        file.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

/// The number in the line `key number` of a flat keyed file.
pub fn value_of(text: &str, key: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find_map(|(name, value)| (name == key).then(|| value.trim().parse().ok())?)
}

/// Where a process is below `cgroup`, as its `/proc/PID/cgroup` has it (cgroups(7)).
fn place_below(cgroup: &Path, proc_cgroup: &str) -> Option<String> {
    let path = proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(path).strip_prefix(cgroup).ok()?;
    let below = below.to_str().filter(|below| !below.is_empty())?;
    Some(below.to_owned())
}

fn is_gone_or_too_long(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotFound};
    matches!(error.kind(), NotFound | InvalidFilename)
}

/// Removes a directory of directories, each by its name alone: the container has chosen how long paths
/// are. They are no deeper than `MAX_DEPTH`. Goes on after a failure, and returns the first.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let mut below = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            below.push(name.to_owned());
        }
    }
    let mut removed = Ok(());
    for name in below {
        let this = remove_tree(directory.as_fd(), &name);
        removed = removed.and(this);
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => removed,
        Err(error) => removed.and(Err(error.into())),
    }
}

fn file_error(action: &'static str, path: PathBuf, source: io::Error) -> CgroupError {
    CgroupError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contents of a `memory.events` after `kills` kills.
    fn memory_events(kills: u64) -> String {
        format!("low 0\nhigh 0\nmax 17\noom 2\noom_kill {kills}\noom_group_kill 0\n")
    }

    #[test]
    fn a_key_is_matched_as_a_whole() {
        assert_eq!(value_of(&memory_events(3), "oom_kill"), Some(3));
        assert_eq!(value_of(&memory_events(3), "oom"), Some(2));
        assert_eq!(value_of(&memory_events(3), "oom_"), None);
    }

    #[test]
    fn each_kill_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            directory: directory.path().to_owned(),
        };
        let file = directory.path().join("memory.events");
        let watch = cgroup.oom_watch();

        let told = [0, 1, 1, 3].map(|kills| {
            fs::write(&file, memory_events(kills)).unwrap();
            watch.is_new()
        });

        assert_eq!(told, [false, true, false, true]);
    }

    #[test]
    fn a_path_of_the_hierarchy_is_below_its_mount() {
        let cgroup = Cgroup::at(Path::new("/hull/c1"));

        assert_eq!(cgroup.directory, Path::new("/sys/fs/cgroup/hull/c1"));
    }

    #[test]
    fn a_process_is_below_the_containers_cgroup_or_in_it() {
        let place = |path: &str| place_below(Path::new("/hull/c1"), &format!("0::{path}\n"));

        assert_eq!(place("/hull/c1/init.scope"), Some("init.scope".to_owned()));
        assert_eq!(place("/hull/c1/a/b"), Some("a/b".to_owned()));
        assert_eq!(place("/hull/c1"), None);
        assert_eq!(place("/hull/c12/init"), None);
        assert_eq!(place_below(Path::new("/hull/c1"), ""), None);
    }

    /// More cgroups in each other than fit into a path.
    fn deep() -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            directory: directory.path().join("cgroup"),
        };
        fs::create_dir(&cgroup.directory).unwrap();
        fs::write(cgroup.directory.join("cgroup.procs"), "10\n").unwrap();
        let name = "x".repeat(255);
        let mut reached = OwnedFd::from(File::open(&cgroup.directory).unwrap());
        for _ in 0..20 {
            rustix::fs::mkdirat(&reached, &name, Mode::RWXU).unwrap();
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            reached = rustix::fs::openat(&reached, &name, flags, Mode::empty()).unwrap();
        }
        (directory, cgroup)
    }

    #[test]
    fn a_path_that_is_too_long_is_passed_over() {
        let (_directory, cgroup) = deep();

        assert_eq!(cgroup.pids().unwrap(), [10]);
    }

    #[test]
    fn cgroups_are_removed_however_long_their_paths_are() {
        let (_directory, cgroup) = deep();
        // The files of a cgroup go with it; here one is in the way of its directory alone.
        let other = cgroup.directory.join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();

        remove_tree(CWD, cgroup.directory.as_os_str()).unwrap_err();
        let left = fs::read_dir(&cgroup.directory).unwrap().count();
        assert_eq!(left, ["cgroup.procs", "other"].len());
        fs::remove_file(other.join("file")).unwrap();
        fs::remove_file(cgroup.directory.join("cgroup.procs")).unwrap();
        remove_tree(CWD, cgroup.directory.as_os_str()).unwrap();
        remove_tree(CWD, cgroup.directory.as_os_str()).unwrap();

        assert!(!cgroup.directory.exists());
    }

    #[test]
    fn a_cgroup_is_populated_while_it_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            directory: directory.path().to_owned(),
        };
        let is_populated = |events| {
            fs::write(directory.path().join("cgroup.events"), events).unwrap();
            cgroup.is_populated()
        };

        assert!(!cgroup.is_populated());
        assert!(is_populated("populated 1\nfrozen 0\n"));
        assert!(!is_populated("populated 0\nfrozen 0\n"));
    }

    #[tokio::test]
    async fn what_cannot_be_frozen_is_thawed_again() {
        // No cgroup: it never says that it is frozen.
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            directory: directory.path().to_owned(),
        };
        fs::write(directory.path().join("cgroup.events"), "frozen 0\n").unwrap();

        cgroup.set_frozen(true).await.unwrap_err();

        let told = fs::read_to_string(directory.path().join("cgroup.freeze"));
        assert_eq!(told.unwrap(), "0");
        assert!(!cgroup.is_frozen());
    }

    #[test]
    fn processes_of_cgroups_below_count() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = Cgroup {
            directory: directory.path().to_owned(),
        };
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("cgroup.procs"), "10\n11\n").unwrap();
        fs::write(directory.path().join("below/cgroup.procs"), "12\n").unwrap();

        assert_eq!(cgroup.pids().unwrap(), [10, 11, 12]);
    }
}
