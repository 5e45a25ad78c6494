//! What a sandbox left behind, found from the disk alone: after a crash of its shim.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::host_cgroup::HostCgroup;
use crate::process_identity::ProcessIdentity;
use crate::rootfs::{self, RootfsError};
use crate::state_dir::{StateDir, StateError};

/// How long a killed process may take to end. One that frees much memory, or waits for a file system, takes longer,
/// but containerd gives its `delete` five seconds for all, and never asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The sandbox's folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The bundle's root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// Processes that do not end.
    #[error("processes {0:?} were killed and have not ended yet")]
    Processes(Vec<u32>),
}

/// Kills the sandbox's processes, unmounts what was mounted for it, at `mounts` too, and removes its
/// cgroup and folder. A sandbox that is not there is no error: containerd asks more than once.
///
/// # Errors
/// When something stays. If it is processes alone, all else is done: they are killed, and end when they can.
pub fn clean_up(state: &StateDir, mounts: Option<&Path>) -> Result<(), CleanupError> {
    let noted = state.processes();
    // virtiofsd keeps a process of its own, in namespaces of its own.
    let children = noted.iter().flat_map(ProcessIdentity::children);
    let mut running: Vec<_> = noted.iter().copied().chain(children).collect();
    let deadline = Instant::now() + PATIENCE;
    while !running.is_empty() && Instant::now() < deadline {
        for process in &running {
            process.kill();
        }
        // A process that is no child of ours cannot be waited for.
        std::thread::sleep(Duration::from_millis(5));
        running.retain(ProcessIdentity::is_running);
    }
    if let Some(cgroup) = state.cgroup() {
        HostCgroup::left(cgroup).remove();
    }
    state.remove()?;
    mounts.map_or(Ok(()), rootfs::unmount)?;
    if running.is_empty() {
        Ok(())
    } else {
        let pids = running.iter().map(|process| process.pid).collect();
        Err(CleanupError::Processes(pids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_was_never_there_is_clean() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path(), "default", "tide").unwrap();
        clean_up(&state, Some(root.path())).unwrap();
    }

    #[test]
    fn its_processes_end_and_its_folder_goes() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(root.path(), "default", "tide").unwrap();
        state.create().unwrap();
        // One with a process of its own, as virtiofsd is.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000; true"])
            .spawn()
            .unwrap();
        state.note_process(child.id()).unwrap();
        let cgroup = root.path().join("cgroup");
        std::fs::create_dir(&cgroup).unwrap();
        state.note_cgroup(&cgroup).unwrap();
        let noted = ProcessIdentity::of(child.id()).unwrap();
        let grandchild = loop {
            match noted.children().first() {
                Some(&grandchild) => break grandchild,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let reaper = std::thread::spawn(move || child.wait().unwrap());

        clean_up(&state, Some(root.path())).unwrap();

        assert!(!reaper.join().unwrap().success());
        assert!(!grandchild.is_running());
        assert!(!cgroup.exists());
        assert!(!state.path().exists());
    }
}
