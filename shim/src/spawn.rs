//! Children that are born somewhere else than their parent is, and what all of them are given.
#![expect(unsafe_code, reason = "what a child does before it runs its program")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use tokio::process::{Child, Command};

use crate::host_cgroup::HostCgroup;
use crate::oom_score;

/// Number of the one descriptor that a [`daemon`] inherits.
pub const DESCRIPTOR: i32 = 3;

/// The network namespace that a process is born in.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// One that nobody else is in.
    New,
    /// The namespace at this path.
    At(&'a Path),
    /// This namespace.
    In(&'a File),
}

impl Place<'_> {
    /// Moves this thread there.
    ///
    /// # Errors
    /// What the kernel says: it is no network namespace, for one.
    pub fn enter(&self) -> io::Result<()> {
        let enter = |namespace: &File| setns(namespace, CloneFlags::CLONE_NEWNET);
        let entered = match self {
            Self::New => unshare(CloneFlags::CLONE_NEWNET),
            Self::At(path) => enter(&File::open(path)?),
            Self::In(namespace) => enter(namespace),
        };
        Ok(entered?)
    }
}

/// A program that speaks over one descriptor, [`DESCRIPTOR`], and has a log, its standard error. It
/// ends with the handle of its process.
#[must_use]
pub fn daemon(program: &Path, descriptor: OwnedFd) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
        .as_std_mut()
        .fd_mappings(vec![FdMapping {
            parent_fd: descriptor,
            child_fd: DESCRIPTOR,
        }])
        .expect("one mapping does not collide");
    command
}

/// What the host counts a sandbox's processes under, and how soon it ends them when memory is short.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// The cgroup that they begin in, so that all they do counts there; the shim's own without.
    pub cgroup: Option<Arc<HostCgroup>>,
    /// Their `oom_score_adj` (proc(5)), -1000 to 1000. Without, they would have the shim's, which containerd makes
    /// one of the last to end.
    pub oom_score_adj: i32,
}

impl Account {
    /// Has the command's process begin under it.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn open(&self, command: &mut Command) -> io::Result<()> {
        let group = self.cgroup.as_ref().map(|group| group.entrance());
        let group = group.transpose()?;
        let score = self.oom_score_adj.to_string();
        let begin = move || {
            if let Some(group) = &group {
                rustix::io::write(group, b"0")?;
            }
            match oom_score::set_own(score.as_bytes()) {
                // Less than the shim's own takes CAP_SYS_RESOURCE, which a shim in a container may lack.
                Err(Errno::ACCESS | Errno::PERM) | Ok(()) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        };
        // SAFETY: the closure runs between fork and exec in a process with several threads. It makes system calls
        // on descriptors of its own, constants and bytes made before, and allocates nothing.
        unsafe { command.pre_exec(begin) };
        Ok(())
    }
}

/// Runs `work` on a thread that `prepare` has moved, and waits for it; the thread ends at once. What
/// `work` makes for the runtime is this thread's runtime's.
///
/// # Errors
/// What `prepare` or `work` returns.
pub fn on_moved_thread<T: Send, E: Send>(
    prepare: impl FnOnce() -> Result<(), E> + Send,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let runtime = tokio::runtime::Handle::current();
    thread::scope(|scope| {
        let worked = scope.spawn(|| {
            prepare()?;
            let _runtime = runtime.enter();
            work()
        });
        worked.join().expect("the thread does not panic")
    })
}

/// Spawns the command from a thread that `prepare` has moved: a child is born in the namespaces of
/// its parent thread and has its `no_new_privs`.
///
/// # Errors
/// What `prepare` returns, or what `failed` makes of the kernel's refusal to spawn.
pub fn spawn_from_thread<E: Send>(
    command: &mut Command,
    prepare: impl FnOnce() -> Result<(), E> + Send,
    failed: impl FnOnce(io::Error) -> E + Send,
) -> Result<Child, E> {
    on_moved_thread(prepare, || command.spawn().map_err(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_has_its_accounts_score_and_not_its_parents() {
        for oom_score_adj in [0, 321] {
            let account = Account {
                oom_score_adj,
                ..Account::default()
            };
            let mut command = Command::new("cat");
            account
                .open(command.arg("/proc/self/oom_score_adj"))
                .unwrap();
            let told = command.output().await.unwrap().stdout;
            assert_eq!(
                String::from_utf8(told).unwrap(),
                format!("{oom_score_adj}\n")
            );
        }
    }
}
