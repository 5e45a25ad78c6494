//! Processes: a child of the agent's, and signals.

#![expect(
    unsafe_code,
    reason = "fork, and what its child does before it is its own; a signal of any number"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::ForkResult;

/// Runs `child` in a forked process that exits with what it returns, and returns its process id.
///
/// The child has the default signal dispositions, and of the caller's descriptors only standard input, output and error and those in `keep`: it shares no socket,
/// pipe or epoll instance with the agent by accident, however long it lives.
///
/// The calling process must have one thread.
///
/// # Errors
/// `fork(2)`: no memory, or too many processes.
pub fn fork(keep: &[BorrowedFd<'_>], child: impl FnOnce() -> i32) -> io::Result<i32> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    // SAFETY: the agent runs one thread, so no lock is held by a thread that the child lacks, and
    // the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            default_signals();
            close_all_but(&keep);
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the process without running the parent's destructors, which would act
            // on descriptors closed above.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Closes every descriptor above standard error that is not in `keep` (sorted).
fn close_all_but(keep: &[RawFd]) {
    let mut first: libc::c_uint = 3;
    let bounds = keep
        .iter()
        .filter_map(|fd| libc::c_uint::try_from(*fd).ok());
    for kept in bounds.filter(|fd| *fd >= 3) {
        if first < kept {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: called only in a new child, which never uses nor drops the owners of these
    // descriptors (see `fork`). It cannot fail with a valid range and no flags.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Undoes what the agent and Rust's runtime did to signals: a handler for SIGCHLD, which writes to
/// a descriptor that the child is about to close, and SIGPIPE ignored, which `execve(2)` preserves.
fn default_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGCHLD, Signal::SIGPIPE] {
        // SAFETY: the default disposition runs no code of this process.
        let _ = unsafe { nix::sys::signal::sigaction(signal, &default) };
    }
}

/// Sends `signal`, which may be a real-time one, to one process.
///
/// # Errors
/// `kill(2)`: `ESRCH` if there is no such process, `EINVAL` if no such signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    debug_assert!(pid > 0, "0 and below name groups of processes");
    // SAFETY: takes two integers.
    Errno::result(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_child_keeps_the_descriptors_it_was_given_and_no_other() {
        let (mut kept, theirs) = UnixStream::pair().unwrap();
        let (mut dropped, ours) = UnixStream::pair().unwrap();
        let ours_raw = ours.as_raw_fd();

        let pid = fork(&[theirs.as_fd()], || {
            let closed = nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_GETFD).is_err();
            (&theirs).write_all(&[u8::from(closed)]).map_or(1, |()| 0)
        })
        .unwrap();
        drop(theirs);
        drop(ours);

        let mut said = Vec::new();
        kept.read_to_end(&mut said).unwrap();
        assert_eq!(said, [1], "descriptor {ours_raw} was open in the child");
        assert_eq!(dropped.read(&mut [0]).unwrap(), 0);
        assert_eq!(
            waitpid(Pid::from_raw(pid), None).unwrap(),
            WaitStatus::Exited(Pid::from_raw(pid), 0)
        );
    }
}
