//! The machine's processors. It boots with one (`maxcpus=1`), however many it has, and the agent brings the others
//! online while the shim gets on with the first container, which waits for them only when it is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::warn;
use tokio::sync::OnceCell;

use crate::error_chain;
use crate::operation;
use crate::reaper::Reaper;

/// Where the kernel has them (Documentation/core-api/cpu_hotplug.rst).
const SYSFS: &str = "/sys/devices/system/cpu";

/// Whether the processors are online.
#[derive(Debug, Default)]
pub struct Processors(OnceCell<()>);

impl Processors {
    /// Brings all of them online, or waits until somebody has. One that the kernel cannot start stays
    /// offline, which the log says: a container runs without it.
    pub async fn online(&self, reaper: &Reaper) {
        let bring = async || {
            let offline = match offline(Path::new(SYSFS)) {
                Ok(offline) if offline.is_empty() => return,
                Ok(offline) => offline,
                Err(error) => return warn!("look for processors: {error}"),
            };
            // In a process of its own: each takes its time.
            let brought = operation::run(reaper, "bring processors online", &[], || {
                bring_online(&offline)
                    .map_err(|(path, error)| format!("{}: {error}", path.display()))
            });
            if let Err(error) = brought.await {
                warn!("{}", error_chain(&error));
            }
        };
        self.0.get_or_init(bring).await;
    }
}

/// The files that bring processors online which are not.
fn offline(sysfs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sysfs)? {
        let file = entry?.path().join("online");
        // Not all entries are processors, and one that cannot be taken offline has no such file.
        if fs::read_to_string(&file).is_ok_and(|state| state.trim() == "0") {
            found.push(file);
        }
    }
    Ok(found)
}

/// Tries each; tells of the first that failed.
fn bring_online(files: &[PathBuf]) -> Result<(), (PathBuf, io::Error)> {
    let mut outcome = Ok(());
    for file in files {
        let written = fs::write(file, "1");
        outcome = outcome.and(written.map_err(|error| (file.clone(), error)));
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_are_offline_are_brought_online() {
        let sysfs = tempfile::tempdir().unwrap();
        let online = |name: &str| sysfs.path().join(name).join("online");
        for (name, state) in [("cpu1", "1\n"), ("cpu2", "0\n"), ("cpu10", "0\n")] {
            fs::create_dir(sysfs.path().join(name)).unwrap();
            fs::write(online(name), state).unwrap();
        }
        fs::create_dir(sysfs.path().join("cpu0")).unwrap();
        fs::write(sysfs.path().join("online"), "0-1\n").unwrap();

        let mut files = offline(sysfs.path()).unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
        let gone = online("cpu3");
        files.insert(0, gone.clone());
        let brought = bring_online(&files);

        assert_eq!(brought.unwrap_err().0, gone);
        assert!(offline(sysfs.path()).unwrap().is_empty());
    }
}
