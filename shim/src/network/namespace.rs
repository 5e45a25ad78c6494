//! Work inside a network namespace, which is a property of a thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use super::NetworkError;
use crate::spawn::{Place, on_moved_thread};
use log::warn;

/// Whether the namespace is that of this process.
pub(super) fn is_own(namespace: &File) -> Result<bool, NetworkError> {
    let (theirs, ours) = (namespace.metadata(), std::fs::metadata("/proc/self/ns/net"));
    let (theirs, ours) = (theirs.map_err(error)?, ours.map_err(error)?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

/// Runs `work` in the namespace. The sockets and taps that it makes are the namespace's, wherever
/// they are used.
pub(super) fn inside<T: Send>(
    namespace: &File,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let enter = || Place::In(namespace).enter().map_err(error);
    on_moved_thread(enter, work)
}

/// Runs `work` on a thread that is in the namespace until `work` ends. What it returns as an error is
/// logged.
pub(super) fn stay_inside(
    namespace: &File,
    name: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), NetworkError> {
    let namespace = namespace.try_clone().map_err(error)?;
    let run = move || {
        let entered = Place::In(&namespace).enter();
        drop(namespace);
        if let Err(e) = entered.and_then(|()| work()) {
            warn!("thread {name}: {e}");
        }
    };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(error)
}

/// A connection to the namespace's kernel. It is closed with the last handle.
pub(super) fn netlink(namespace: &File) -> Result<rtnetlink::Handle, NetworkError> {
    let connect = || rtnetlink::new_connection().map_err(NetworkError::Socket);
    let (connection, handle, _) = inside(namespace, connect)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn error(source: io::Error) -> NetworkError {
    NetworkError::Namespace {
        path: PathBuf::from("of the sandbox"),
        source,
    }
}
