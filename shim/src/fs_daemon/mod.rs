//! virtiofsd: shows the guest the sandbox's shared folder, and nothing else.
//!
//! It is started with a listening socket; the connection to it is made before it runs, so nobody
//! waits for it, and handed to the VMM.

mod confine;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::process::Child;

use crate::spawn::{self, Account, spawn_from_thread};
use crate::state_dir::StateDir;

/// Why the daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum FsDaemonError {
    /// Its socket.
    #[error("prepare {}", path.display())]
    Prepare {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What holds it.
    #[error("confine the file-system daemon")]
    Confine(#[source] io::Error),
    /// The program.
    #[error("start the file-system daemon {}", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts the daemon for the sandbox; returns it with the VMM's end of its connection.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    program: &Path,
    state: &StateDir,
    account: &Account,
) -> Result<(Child, OwnedFd), FsDaemonError> {
    let prepare = |path: &Path, source| FsDaemonError::Prepare {
        path: path.to_owned(),
        source,
    };
    // A socket's path is short (`sun_path`, 107 bytes) and a container's name need not be: the
    // folder is named by its descriptor.
    let folder = File::open(state.path()).map_err(|e| prepare(state.path(), e))?;
    let socket = PathBuf::from(format!(
        "/proc/self/fd/{}/virtiofsd.sock",
        folder.as_raw_fd()
    ));
    let listener = UnixListener::bind(&socket).map_err(|e| prepare(&socket, e))?;
    // The kernel queues the connection until the daemon accepts it.
    let connection = UnixStream::connect(&socket).map_err(|e| prepare(&socket, e))?;
    // Nobody else is to connect.
    std::fs::remove_file(&socket).map_err(|e| prepare(&socket, e))?;

    let mut command = spawn::daemon(program, listener.into());
    command
        .arg(format!("--fd={}", spawn::DESCRIPTOR))
        .arg(format!("--shared-dir={}", state.shared().display()))
        .args(["--sandbox=namespace", "--seccomp=kill"])
        // Each mount below is a file system of its own in the guest: inode numbers stay unique.
        .arg("--announce-submounts")
        .args(["--cache=auto", "--xattr", "--posix-acl", "--killpriv-v2"])
        // It may not write the guest's trusted attributes as such: they need CAP_SYS_ADMIN on the host.
        .arg("--xattrmap=:map:trusted.:user.virtiofs.:")
        .args(["--inode-file-handles=never", "--log-level=warn"]);
    confine::keep_memory_out_of_dumps(&mut command);
    account.open(&mut command).map_err(FsDaemonError::Confine)?;
    let failed = |source| FsDaemonError::Start {
        program: program.to_owned(),
        source,
    };
    let child = spawn_from_thread(
        &mut command,
        || confine::enter().map_err(FsDaemonError::Confine),
        failed,
    )?;
    Ok((child, connection.into()))
}
