//! Network namespaces: this process's own, where the machine's cards are, and those of containers.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::task::AbortHandle;

/// A network namespace, which stays as long as this does.
pub struct Namespace(File);

/// A connection to a namespace's kernel. It is closed with this.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    served: AbortHandle,
}

impl Namespace {
    /// The one that this process is in.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn own() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/ns/net")?))
    }

    /// That of process `pid`.
    ///
    /// # Errors
    /// What `open(2)` says; there may be no such process any more.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/ns/net"))?))
    }

    /// The same once more.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Runs `work` in the namespace; what it opens there is the namespace's, wherever it is used.
    ///
    /// A thread that is gone when this returns does it: whatever becomes of it, the agent is where it
    /// was, and has one thread when it forks.
    ///
    /// # Errors
    /// What `setns(2)` or `work` says.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let runtime = tokio::runtime::Handle::current();
        thread::scope(|scope| {
            let worker = thread::Builder::new().spawn_scoped(scope, || {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                let _runtime = runtime.enter();
                work()
            })?;
            worker.join().expect("the thread does not panic")
        })
    }

    /// Connects to its kernel.
    ///
    /// # Errors
    /// As [`Namespace::inside`].
    pub(super) fn netlink(&self) -> io::Result<Netlink> {
        let (connection, handle, _) = self.inside(rtnetlink::new_connection)?;
        let served = tokio::spawn(connection).abort_handle();
        Ok(Netlink { handle, served })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.served.abort();
    }
}
