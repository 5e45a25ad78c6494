//! What holds virtiofsd besides what it does to itself (namespaces, root, capabilities, its filter).
#![expect(unsafe_code, reason = "what a child does before it runs its program")]

use std::io;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::process::Command;

/// Moves the calling thread, and so the children it will have, to IPC and UTS namespaces of their own
/// and to where no program gains rights by being executed. virtiofsd itself enters a mount, a pid and
/// a network namespace.
pub(super) fn enter() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Lets no crash of the command write the guest's memory, which it maps, to the host's disk.
pub(super) fn keep_memory_out_of_dumps(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec in a process with several threads. It makes
    // system calls on constants and allocates nothing.
    unsafe { command.pre_exec(no_dumps) };
}

fn no_dumps() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // core(5): a dump that goes to a program does not mind the limit, but all mind which mappings
    // are left out: here each. A kernel without dumps does not have the file.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = openat(CWD, c"/proc/self/coredump_filter", flags, Mode::empty()) {
        rustix::io::write(&file, b"0")?;
    }
    Ok(())
}
