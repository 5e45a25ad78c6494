//! Locks, between this process and another one.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

use crate::check::{Case, Outcome, holds, same};
use crate::other;

pub(crate) const CASES: &[Case] = &[
    Case::new("flock_excludes", "flock(2)", flock_excludes),
    Case::new("flock_shares", "flock(2)", flock_shares),
    Case::new(
        "flock_ends_with_the_file",
        "flock(2)",
        flock_ends_with_the_file,
    ),
    Case::new("flock_waits", "flock(2)", flock_waits),
    Case::new(
        "records_exclude_where_they_overlap",
        "fcntl F_SETLK",
        records_exclude,
    ),
    Case::new("records_share", "fcntl F_SETLK", records_share),
    Case::new(
        "records_end_with_any_close",
        "fcntl F_SETLK",
        records_end_with_any_close,
    ),
    Case::new(
        "record_locks_tell_their_owner",
        "fcntl F_GETLK",
        record_locks_tell_their_owner,
    ),
    Case::new(
        "open_file_locks_exclude",
        "fcntl F_OFD_SETLK",
        open_file_locks_exclude,
    ),
    Case::new(
        "open_file_locks_outlive_a_close",
        "fcntl F_OFD_SETLK",
        open_file_locks_outlive,
    ),
];

/// A lock on `length` bytes (0: all that follow) from `start` on.
pub(crate) fn record(kind: libc::c_int, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).expect("a small constant"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("a small constant"),
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn file() -> Outcome<File> {
    let mut options = File::options();
    Ok(options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open("f")?)
}

fn other_gets(what: &[&str], expected: bool) -> Outcome {
    let status = other::process(what)?.code();
    same("the other's status", status, Some(i32::from(!expected)))
}

fn flock_excludes() -> Outcome {
    let file = file()?;
    flock(&file, FlockOperation::LockExclusive)?;
    other_gets(&["flock", "f", "exclusive"], false)?;
    other_gets(&["flock", "f", "shared"], false)?;
    flock(&file, FlockOperation::Unlock)?;
    other_gets(&["flock", "f", "exclusive"], true)
}

fn flock_shares() -> Outcome {
    let file = file()?;
    flock(&file, FlockOperation::LockShared)?;
    other_gets(&["flock", "f", "shared"], true)?;
    other_gets(&["flock", "f", "exclusive"], false)
}

fn flock_ends_with_the_file() -> Outcome {
    let file = file()?;
    flock(&file, FlockOperation::LockExclusive)?;
    let copy = file.try_clone()?;
    drop(file);
    other_gets(&["flock", "f", "exclusive"], false)?;
    drop(copy);
    other_gets(&["flock", "f", "exclusive"], true)
}

fn flock_waits() -> Outcome {
    let holder = file()?;
    flock(&holder, FlockOperation::LockExclusive)?;
    let waiter = std::thread::spawn(|| {
        file().and_then(|file| Ok(flock(&file, FlockOperation::LockExclusive)?))
    });
    std::thread::sleep(Duration::from_millis(100));
    holds(!waiter.is_finished(), "nobody waited")?;
    flock(&holder, FlockOperation::Unlock)?;
    waiter.join().expect("a panic aborts")
}

fn set(file: impl AsFd, kind: libc::c_int, start: i64, length: i64) -> Outcome {
    fcntl(file, FcntlArg::F_SETLK(&record(kind, start, length)))?;
    Ok(())
}

fn records_exclude() -> Outcome {
    let file = file()?;
    set(&file, libc::F_WRLCK, 100, 100)?;
    other_gets(&["lock", "f", "exclusive", "150", "10"], false)?;
    other_gets(&["lock", "f", "shared", "199", "10"], false)?;
    other_gets(&["lock", "f", "exclusive", "200", "0"], true)?;
    other_gets(&["lock", "f", "exclusive", "0", "100"], true)?;
    set(&file, libc::F_UNLCK, 150, 10)?;
    other_gets(&["lock", "f", "exclusive", "150", "10"], true)
}

fn records_share() -> Outcome {
    let file = file()?;
    set(&file, libc::F_RDLCK, 0, 0)?;
    other_gets(&["lock", "f", "shared", "0", "0"], true)?;
    other_gets(&["lock", "f", "exclusive", "0", "1"], false)
}

fn records_end_with_any_close() -> Outcome {
    let held = file()?;
    set(&held, libc::F_WRLCK, 0, 0)?;
    other_gets(&["lock", "f", "exclusive", "0", "0"], false)?;
    drop(file()?);
    other_gets(&["lock", "f", "exclusive", "0", "0"], true)
}

fn record_locks_tell_their_owner() -> Outcome {
    let held = file()?;
    set(&held, libc::F_WRLCK, 10, 20)?;
    // To an open file's lock the process's own is somebody else's.
    let mut asked = record(libc::F_WRLCK, 0, 0);
    fcntl(file()?, FcntlArg::F_OFD_GETLK(&mut asked))?;
    let own = i32::try_from(std::process::id())?;
    same(
        "the owner and its bytes",
        (asked.l_pid, asked.l_start, asked.l_len),
        (own, 10, 20),
    )
}

fn open_file_locks_exclude() -> Outcome {
    let (one, two) = (file()?, file()?);
    fcntl(&one, FcntlArg::F_OFD_SETLK(&record(libc::F_WRLCK, 0, 10)))?;
    let again = fcntl(&two, FcntlArg::F_OFD_SETLK(&record(libc::F_WRLCK, 5, 10)));
    same("the other open file's", again, Err(nix::Error::EAGAIN))?;
    other_gets(&["lock", "f", "exclusive", "0", "10"], false)?;
    other_gets(&["lock", "f", "exclusive", "10", "10"], true)
}

fn open_file_locks_outlive() -> Outcome {
    let one = file()?;
    fcntl(&one, FcntlArg::F_OFD_SETLK(&record(libc::F_WRLCK, 0, 10)))?;
    drop(file()?);
    other_gets(&["lock", "f", "exclusive", "0", "10"], false)?;
    drop(one);
    other_gets(&["lock", "f", "exclusive", "0", "10"], true)
}
