//! A process of the host, as `/proc` tells of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process that is there for as long as the test looks.
#[derive(Debug, Clone)]
pub struct Process {
    pid: String,
}

impl Process {
    /// The process of that number, or `self`.
    #[must_use]
    pub fn of(pid: &str) -> Self {
        Self {
            pid: pid.to_owned(),
        }
    }

    /// Its number, or `self`.
    #[must_use]
    pub fn pid(&self) -> &str {
        &self.pid
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(&self.pid).join(file)
    }

    /// Bytes of the host's memory that this VMM has for its guest: of the guest's memory file, what is
    /// allocated.
    ///
    /// # Panics
    /// When it is no VMM.
    #[must_use]
    #[track_caller]
    pub fn guest_memory(&self) -> u64 {
        let entries = fs::read_dir(self.path("fd")).expect("list its descriptors");
        let mut paths = entries.flatten().map(|entry| entry.path());
        let is_memory = |path: &PathBuf| {
            fs::read_link(path)
                .is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:hull-guest"))
        };
        let file = paths.find(is_memory).expect("it has a guest's memory");
        fs::metadata(file).expect("look at it").blocks() * 512
    }

    /// A file in its folder.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    #[track_caller]
    pub fn read(&self, file: &str) -> String {
        read(&self.path(file))
    }

    /// A field of its status (proc_pid_status(5)).
    #[must_use]
    #[track_caller]
    pub fn status(&self, field: &str) -> String {
        field_of(&self.read("status"), field)
    }

    /// That field of each of its threads, by their names.
    #[must_use]
    #[track_caller]
    pub fn of_each_thread(&self, field: &str) -> BTreeMap<String, String> {
        entries(&self.path("task"))
            .iter()
            .map(|thread| read(&thread.join("status")))
            .map(|status| (field_of(&status, "Name"), field_of(&status, field)))
            .collect()
    }

    /// Which namespace of a kind it is in.
    ///
    /// # Panics
    /// When there is no such kind.
    #[must_use]
    #[track_caller]
    pub fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(self.path("ns").join(kind))
            .unwrap_or_else(|e| panic!("the {kind} namespace of {}: {e}", self.pid))
    }

    /// The soft and the hard limit in a line of its limits.
    ///
    /// # Panics
    /// When there is no such line.
    #[must_use]
    #[track_caller]
    pub fn limits(&self, line: &str) -> Vec<String> {
        let limits = self.read("limits");
        let found = limits.lines().find_map(|text| text.strip_prefix(line));
        let found = found.unwrap_or_else(|| panic!("no {line} in {limits}"));
        (found.split_whitespace().take(2).map(str::to_owned)).collect()
    }

    /// The names in what it sees as the root directory.
    #[must_use]
    #[track_caller]
    pub fn root(&self) -> Vec<String> {
        entries(&self.path("root"))
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect()
    }

    /// The processes that it started.
    #[must_use]
    #[track_caller]
    pub fn children(&self) -> Vec<Self> {
        self.read(&format!("task/{}/children", self.pid))
            .split_whitespace()
            .map(Self::of)
            .collect()
    }
}

#[track_caller]
fn field_of(status: &str, field: &str) -> String {
    let found = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let found = found.unwrap_or_else(|| panic!("no {field} in {status}"));
    found.trim().to_owned()
}

#[track_caller]
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

#[track_caller]
fn entries(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    entries.flatten().map(|entry| entry.path()).collect()
}
