//! Children that are born somewhere else than their parent is, and what all of them are given.
#![expect(unsafe_code, reason = "what a child does before it runs its program")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::{Child, Command};

use crate::host_cgroup::HostCgroup;

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

/// Has the command's process begin in a cgroup, so that all it does counts there.
///
/// # Errors
/// When the group is gone.
pub fn into_cgroup(command: &mut Command, group: Option<&HostCgroup>) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    let entrance = group.entrance()?;
    // SAFETY: the closure runs between fork and exec in a process with several threads. It makes one
    // system call on a descriptor that it owns and a constant, and allocates nothing.
    unsafe { command.pre_exec(move || Ok(rustix::io::write(&entrance, b"0").map(drop)?)) };
    Ok(())
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
