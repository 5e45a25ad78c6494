//! Work inside a network namespace, which is a property of a thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use nix::sched::CloneFlags;
use tokio::sync::oneshot;

use super::NetworkError;

/// Whether the namespace is that of this process.
pub(super) fn is_own(namespace: &File) -> Result<bool, NetworkError> {
    let (theirs, ours) = (namespace.metadata(), std::fs::metadata("/proc/self/ns/net"));
    let (theirs, ours) = (theirs.map_err(error)?, ours.map_err(error)?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

/// Runs `work` on a thread of its own in the namespace; the thread ends with it.
pub(super) async fn within<T, F>(
    namespace: &File,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, NetworkError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let namespace = namespace.try_clone().map_err(error)?;
    let (sender, done) = oneshot::channel();
    let on_thread = move || {
        nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_all().build()
            })
            .map_err(error)
            .and_then(|runtime| runtime.block_on(work()))
    };
    let thread = thread::Builder::new().name("network".into());
    let spawned = thread.spawn(move || drop(sender.send(on_thread())));
    spawned.map_err(error)?;
    // Without an answer the thread has panicked.
    done.await
        .unwrap_or_else(|_| Err(error(io::ErrorKind::BrokenPipe.into())))
}

/// A connection to the kernel of the namespace that this thread is in.
pub(super) fn netlink() -> Result<rtnetlink::Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn error(source: io::Error) -> NetworkError {
    NetworkError::Namespace {
        path: PathBuf::from("of the sandbox"),
        source,
    }
}
