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
    let (sender, done) = oneshot::channel();
    on_thread(namespace, move |entered| async move {
        let _ = sender.send(match entered {
            Ok(()) => work().await,
            Err(error) => Err(error),
        });
    })?;
    answer(done).await
}

/// Has `prepare` make a task on a thread of its own in the namespace, and waits until it has; the
/// thread stays for the task, and ends with it.
pub(super) async fn stay<F, T>(
    namespace: &File,
    prepare: impl FnOnce() -> F + Send + 'static,
) -> Result<(), NetworkError>
where
    F: Future<Output = Result<T, NetworkError>>,
    T: Future<Output = ()>,
{
    let (sender, done) = oneshot::channel();
    on_thread(namespace, move |entered| async move {
        let prepared = match entered {
            Ok(()) => prepare().await,
            Err(error) => Err(error),
        };
        match prepared {
            Ok(task) => {
                let _ = sender.send(Ok(()));
                task.await;
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    })?;
    answer(done).await
}

async fn answer<T>(done: oneshot::Receiver<Result<T, NetworkError>>) -> Result<T, NetworkError> {
    // Without an answer the thread has panicked.
    done.await
        .unwrap_or_else(|_| Err(error(io::ErrorKind::BrokenPipe.into())))
}

/// Runs `work` on a new thread, with whether that is in the namespace.
fn on_thread<F: Future<Output = ()>>(
    namespace: &File,
    work: impl FnOnce(Result<(), NetworkError>) -> F + Send + 'static,
) -> Result<(), NetworkError> {
    let namespace = namespace.try_clone().map_err(error)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(error)?;
    let thread = thread::Builder::new().name("network".into());
    let spawned = thread.spawn(move || {
        let entered = nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET);
        let entered = entered.map_err(|errno| error(errno.into()));
        runtime.block_on(work(entered));
    });
    spawned.map_err(error)?;
    Ok(())
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
