//! Where a shim listens for containerd: a socket whose path containerd's address, namespace and the container's name
//! decide. So it is that of the next shim for the container, too.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why there is no socket, or still one.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct SocketError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Which file a socket is. Its path can be another's by the time that this one ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Bound {
    device: u64,
    inode: u64,
}

impl Bound {
    fn at(socket: &Path) -> Result<Self, SocketError> {
        let is = fs::symlink_metadata(socket).map_err(error("look at", socket))?;
        Ok(Self {
            device: is.dev(),
            inode: is.ino(),
        })
    }

    /// Removes it, and none that is there in its stead.
    ///
    /// # Errors
    /// As [`remove`].
    pub fn remove(&self, socket: &Path) -> Result<(), SocketError> {
        if Self::at(socket).is_ok_and(|there| there == *self) {
            remove(socket)?;
        }
        Ok(())
    }
}

/// Listens at the socket. One that is there was left by a shim that crashed: `start` puts none into the
/// background whose socket is served.
///
/// # Errors
/// What the kernel says.
pub fn listen(socket: &Path) -> Result<(UnixListener, Bound), SocketError> {
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(error("make", parent))?;
    }
    remove(socket)?;
    let listener = UnixListener::bind(socket).map_err(error("listen at", socket))?;
    // root alone may ask for containers.
    let restricted = fs::set_permissions(socket, PermissionsExt::from_mode(0o600));
    restricted.map_err(error("restrict", socket))?;
    Ok((listener, Bound::at(socket)?))
}

/// Whether a shim listens there.
#[must_use]
pub fn is_served(address: &str) -> bool {
    UnixStream::connect(path_of(address)).is_ok()
}

/// The path of a shim's address, `unix://PATH`.
#[must_use]
pub fn path_of(address: &str) -> PathBuf {
    let address = address.trim();
    address.strip_prefix("unix://").unwrap_or(address).into()
}

/// Removes a socket, if there is one.
///
/// # Errors
/// What the kernel says.
pub fn remove(socket: &Path) -> Result<(), SocketError> {
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error("remove", socket)(e)),
        _ => Ok(()),
    }
}

fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_removed_by_who_listens_there_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("shim.sock");
        let (former, formers) = listen(&socket).unwrap();
        let (_latter, latters) = listen(&socket).unwrap();
        formers.remove(&socket).unwrap();
        assert!(is_served(socket.to_str().unwrap()));
        latters.remove(&socket).unwrap();
        assert!(!socket.exists());
        latters.remove(&socket).unwrap();
        drop(former);
    }
}
