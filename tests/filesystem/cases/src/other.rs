//! The other process: acts on a file and says with its exit status how that went.

use std::fs::File;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};
use rustix::mm::MapFlags;

use crate::check::Outcome;
use crate::locks::record;
use crate::sys::Map;

/// Runs another process of this program; its exit status is 0 when the action went well, 1 when
/// somebody else's lock was in the way, and 2 when it went wrong.
pub(crate) fn process(action: &[&str]) -> Outcome<ExitStatus> {
    Ok(Command::new("/proc/self/exe")
        .arg("--other")
        .args(action)
        .status()?)
}

/// Does what `process` was asked for.
pub(crate) fn act(action: &[String]) -> ExitCode {
    let action: Vec<&str> = action.iter().map(String::as_str).collect();
    let done = match *action.as_slice() {
        // Whole-file lock by flock(2).
        ["flock", path, kind] => try_flock(path, kind),
        // The same, for three seconds.
        ["hold", path] => hold(path),
        // A record lock on some bytes.
        ["lock", path, kind, start, length] => try_lock(path, kind, start, length),
        // Reads one byte of a mapping that has two pages.
        ["touch", path, offset] => touch(path, offset),
        ["true"] => Ok(true),
        _ => return ExitCode::from(2),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn open(path: &str) -> Outcome<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

fn try_flock(path: &str, kind: &str) -> Outcome<bool> {
    let operation = match kind {
        "shared" => FlockOperation::NonBlockingLockShared,
        _ => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(open(path)?, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn hold(path: &str) -> Outcome<bool> {
    let file = open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    println!("held");
    std::thread::sleep(Duration::from_secs(3));
    Ok(true)
}

fn try_lock(path: &str, kind: &str, start: &str, length: &str) -> Outcome<bool> {
    let kind = match kind {
        "shared" => libc::F_RDLCK,
        _ => libc::F_WRLCK,
    };
    let lock = record(kind, start.parse()?, length.parse()?);
    match fcntl(open(path)?, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn touch(path: &str, offset: &str) -> Outcome<bool> {
    let map = Map::new(open(path)?, 8192, MapFlags::SHARED)?;
    map.read(offset.parse()?, 1);
    Ok(true)
}
