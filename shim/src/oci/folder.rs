//! What is kept of a container below `--root`: all that one command leaves for the next.
//!
//! ```text
//! ROOT/ID/
//!   record.json      the container, once it is created
//!   config.json      a link to that of its bundle, for the shim
//!   address          where its shim listens
//!   log              what the shim says, with --debug
//!   [EXEC-]stdin …   named pipes between the shim and who follows a process
//! ```

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::args::ROOT;
use super::error::OciError;
use crate::process_identity::ProcessIdentity;

/// The containerd namespace that the shims of the default root believe to be in.
const NAMESPACE: &str = "oci";

/// A container, as `state` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Version of the specification that its configuration is of.
    pub(super) oci_version: String,
    /// Its bundle, as given.
    pub(super) bundle: PathBuf,
    /// Its root file system on the host.
    pub(super) rootfs: PathBuf,
    /// When it was created (RFC 3339).
    pub(super) created: String,
    /// Its configuration's annotations.
    pub(super) annotations: HashMap<String, String>,
    /// The process whose pid the caller was told: with its start, for pids are used again.
    pub(super) process: Option<String>,
}

impl Record {
    /// The pid that the caller was told, as long as that process lives.
    pub(super) fn pid(&self) -> Option<u32> {
        let process: ProcessIdentity = self.process.as_ref()?.parse().ok()?;
        process.is_running().then_some(process.pid)
    }
}

/// A container's folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    pub(super) id: String,
    /// The containerd namespace that its shim believes to be in.
    pub(super) namespace: String,
    path: PathBuf,
}

impl Folder {
    /// Makes the folder of a new container.
    pub(super) fn create(
        root: &Path,
        id: &str,
        bundle: &Path,
        debug: bool,
    ) -> Result<Self, OciError> {
        let folder = Self::at(root, id)?;
        let make = |path: &Path, parents| {
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(parents).create(path)
        };
        let root = folder.path.parent().unwrap_or(root);
        make(root, true).map_err(OciError::file("make", root))?;
        match make(&folder.path, false) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(OciError::Exists),
            made => made.map_err(OciError::file("make", &folder.path))?,
        }
        let log = folder.path.join("log");
        let logged = if debug {
            fs::write(&log, b"")
        } else {
            symlink("/dev/null", &log)
        };
        let config = folder.path.join("config.json");
        logged
            .and_then(|()| symlink(bundle.join("config.json"), &config))
            .map_err(OciError::file("make", &folder.path))
            .inspect_err(|_| drop(folder.remove()))?;
        Ok(folder)
    }

    /// The folder of a container that is there, or is just being made or has been left half made.
    pub(super) fn open(root: &Path, id: &str) -> Result<Self, OciError> {
        let folder = Self::at(root, id)?;
        if folder.path.is_dir() {
            Ok(folder)
        } else {
            Err(OciError::NoContainer)
        }
    }

    /// All of the root's containers, by name.
    pub(super) fn all(root: &Path) -> Vec<Self> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter_map(|entry| Self::open(root, entry.file_name().to_str()?).ok())
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn at(root: &Path, id: &str) -> Result<Self, OciError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if !id.chars().all(allowed) || matches!(id, "" | "." | "..") {
            return Err(OciError::Id(id.to_owned()));
        }
        let root = std::path::absolute(root).map_err(OciError::file("find", root))?;
        let namespace = if root == Path::new(ROOT) {
            NAMESPACE.to_owned()
        } else {
            let root = root.to_string_lossy();
            format!(
                "{NAMESPACE}{}",
                utf8_percent_encode(&root, NON_ALPHANUMERIC)
            )
        };
        Ok(Self {
            id: id.to_owned(),
            namespace,
            path: root.join(id),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn record(&self) -> Result<Record, OciError> {
        let path = self.path.join("record.json");
        let text = match fs::read(&path) {
            // It is being created, or who did that was killed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(OciError::NoContainer),
            read => read.map_err(OciError::file("read", &path))?,
        };
        let what = "record";
        serde_json::from_slice(&text).map_err(|source| OciError::Json { what, path, source })
    }

    /// Writes the record, all at once.
    pub(super) fn note(&self, record: &Record) -> Result<(), OciError> {
        let (path, new) = (
            self.path.join("record.json"),
            self.path.join(".record.json"),
        );
        let text = serde_json::to_vec(record).expect("its maps have strings for keys");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(OciError::file("write", path))
    }

    /// Where the shim listens, if it was started.
    pub(super) fn address(&self) -> Option<String> {
        fs::read_to_string(self.path.join("address")).ok()
    }

    pub(super) fn remove(&self) -> Result<(), OciError> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(OciError::file("remove", &self.path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            oci_version: "1.2.0".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-02T03:04:05Z".into(),
            annotations: HashMap::from([("tide".into(), "high".into())]),
            process: ProcessIdentity::of(std::process::id()).map(|own| own.to_string()),
        }
    }

    #[test]
    fn a_container_is_there_once_and_known_once_its_record_is() {
        let root = tempfile::tempdir().unwrap();
        let create = || Folder::create(root.path(), "tide", "/b".as_ref(), false);
        let folder = create().unwrap();
        assert!(matches!(create(), Err(OciError::Exists)));
        assert!(matches!(folder.record(), Err(OciError::NoContainer)));
        folder.note(&record()).unwrap();
        let found = Folder::open(root.path(), "tide").unwrap();
        assert_eq!(found.record().unwrap(), record());
        assert_eq!(found.record().unwrap().pid(), Some(std::process::id()));
        assert_eq!(Folder::all(root.path()).len(), 1);
        found.remove().unwrap();
        assert!(matches!(
            Folder::open(root.path(), "tide"),
            Err(OciError::NoContainer)
        ));
    }

    #[test]
    fn a_name_is_one_component_of_a_path() {
        for id in ["", ".", "..", "a/b", "a b", "\u{e9}"] {
            let found = Folder::open("/run".as_ref(), id);
            assert!(matches!(found, Err(OciError::Id(_))), "{id}");
        }
    }

    #[test]
    fn roots_are_namespaces_of_their_own() {
        let namespace = |root: &str| Folder::at(root.as_ref(), "tide").unwrap().namespace;
        assert_eq!(namespace(ROOT), "oci");
        assert_eq!(namespace("/run/a-b"), "oci%2Frun%2Fa%2Db");
        assert_ne!(namespace("/run/a-b"), namespace("/run/a/b"));
    }
}
