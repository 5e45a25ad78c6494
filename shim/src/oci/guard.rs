//! What a monitor that was killed leaves: a process in the guest that nobody follows.
//!
//! Who is told a pid may send it SIGKILL, which no process can pass on. So beside each monitor, and each program
//! that creates a container, there is a guard, this program again, that waits for a word of it. If it ends
//! without one, the guard kills the process, and a container that nobody else knows of goes.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::args::GuardArgs;
use super::error::OciError;
use super::folder::Folder;
use super::lifecycle;
use super::task::{SIGKILL, Task};

/// A guard that watches this process, until it is dropped.
pub(super) struct Guard(Child);

impl Guard {
    /// Starts one for a process; `delete` has it delete the container, too.
    pub(super) fn start(folder: &Folder, exec_id: &str, delete: bool) -> Result<Self, OciError> {
        let program = std::env::current_exe().map_err(OciError::kernel("find this program"))?;
        let root = folder.path().parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(&program);
        command.args(["oci", "--root"]).arg(root).arg("guard");
        if delete {
            command.arg("--delete");
        }
        if !exec_id.is_empty() {
            command.args(["--exec", exec_id]);
        }
        command
            .arg(&folder.id)
            // What kills the monitor's group is not to kill the guard.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(OciError::file("run", program))?;
        Ok(Self(child))
    }
}

impl Drop for Guard {
    /// Dismisses it. Whoever drops it has seen to the process himself: it is for who could not.
    fn drop(&mut self) {
        if let Some(mut word) = self.0.stdin.take() {
            let _ = word.write_all(b".");
        }
        let _ = self.0.wait();
    }
}

/// What a guard does.
pub(super) async fn run(root: &Path, args: &GuardArgs) -> Result<(), OciError> {
    let read = io::stdin().read(&mut [0]);
    if read.map_err(OciError::kernel("wait for the monitor"))? > 0 {
        return Ok(());
    }
    let folder = Folder::open(root, &args.id)?;
    if args.delete {
        return lifecycle::discard(&folder).await;
    }
    let task = Task::connect(&folder).await.ok_or(OciError::NotRunning)?;
    let exec_id = args.exec.as_deref().unwrap_or_default();
    task.kill(exec_id, SIGKILL, exec_id.is_empty()).await
}
