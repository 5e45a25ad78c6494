//! Owners, modes and times: what chmod, chown and write do to them, and who may.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    XattrFlags, ftruncate, open, setxattr, statx, utimensat,
};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};
use crate::user::{EXTRA, GROUP, USER, as_user};
use crate::xattrs::{CAPABILITY, value};

pub(crate) const CASES: &[Case] = &[
    Case::new(
        "write_clears_setuid",
        "inode(7), write",
        write_clears_setuid,
    ),
    Case::new(
        "truncate_clears_setuid",
        "truncate(2)",
        truncate_clears_setuid,
    ),
    Case::new(
        "open_truncating_clears_setuid",
        "inode(7)",
        open_truncating_clears_setuid,
    ),
    Case::new(
        "root_keeps_setuid",
        "capabilities(7) CAP_FSETID",
        root_keeps_setuid,
    ),
    Case::new("chown_clears_setuid", "chown(2)", chown_clears_setuid),
    Case::new(
        "write_removes_capabilities",
        "capabilities(7)",
        write_removes_capabilities,
    ),
    Case::new(
        "chown_removes_capabilities",
        "capabilities(7)",
        chown_removes_capabilities,
    ),
    Case::new(
        "setgid_directory_gives_its_group",
        "inode(7)",
        setgid_directory_gives_its_group,
    ),
    Case::new(
        "setgid_file_needs_the_group",
        "inode(7)",
        setgid_file_needs_the_group,
    ),
    Case::new("umask", "umask", umask),
    Case::new(
        "supplementary_group_reads",
        "credentials(7)",
        supplementary_group_reads,
    ),
    Case::new(
        "supplementary_group_creates",
        "credentials(7)",
        supplementary_group_creates,
    ),
    Case::new(
        "created_file_is_the_users",
        "open",
        created_file_is_the_users,
    ),
    Case::new(
        "access_asks_for_the_real_user",
        "access",
        access_asks_for_the_real_user,
    ),
    Case::new("open_file_shows_chmod", "fstat", open_file_shows_chmod),
    Case::new(
        "open_file_outlives_its_mode",
        "open",
        open_file_outlives_its_mode,
    ),
    Case::new("nanoseconds", "utimensat(2)", nanoseconds),
    Case::new(
        "times_before_1970_and_after_2038",
        "utimensat(2)",
        far_times,
    ),
    Case::new("omitted_times", "utimensat UTIME_OMIT", omitted_times),
    Case::new("time_of_now", "utimensat UTIME_NOW", time_of_now),
    Case::new(
        "reading_updates_the_access_time",
        "read",
        reading_updates_the_access_time,
    ),
    Case::new("writing_updates_times", "write", writing_updates_times),
    Case::new(
        "creating_updates_the_directory",
        "open",
        creating_updates_the_directory,
    ),
    Case::new("birth_time", "statx(2)", birth_time),
];

fn stat(path: &str) -> Outcome<Metadata> {
    Ok(std::fs::symlink_metadata(path)?)
}

fn mode(path: &str) -> Outcome<u32> {
    Ok(stat(path)?.mode() & 0o7777)
}

/// A file of USER's with `mode`.
fn users_file(mode: u32) -> Outcome {
    std::fs::write("f", "tide")?;
    chown("f", Some(USER), Some(GROUP))?;
    Ok(std::fs::set_permissions(
        "f",
        PermissionsExt::from_mode(mode),
    )?)
}

fn users_open(flags: OFlags) -> Outcome<File> {
    Ok(open("f", flags, Mode::empty())?.into())
}

fn write_clears_setuid() -> Outcome {
    users_file(0o6777)?;
    // Known to the cache.
    same("the mode", mode("f")?, 0o6777)?;
    as_user(&[], || Ok(users_open(OFlags::WRONLY)?.write_all(b"e")?))?;
    same("the mode", mode("f")?, 0o777)
}

fn truncate_clears_setuid() -> Outcome {
    users_file(0o6777)?;
    same("the mode", mode("f")?, 0o6777)?;
    as_user(&[], || Ok(ftruncate(users_open(OFlags::WRONLY)?, 1)?))?;
    same("the mode", mode("f")?, 0o777)
}

fn open_truncating_clears_setuid() -> Outcome {
    users_file(0o6777)?;
    same("the mode", mode("f")?, 0o6777)?;
    as_user(&[], || users_open(OFlags::WRONLY | OFlags::TRUNC).map(drop))?;
    same("the mode", mode("f")?, 0o777)
}

fn root_keeps_setuid() -> Outcome {
    users_file(0o6777)?;
    users_open(OFlags::WRONLY)?.write_all(b"e")?;
    same("the mode", mode("f")?, 0o6777)
}

fn chown_clears_setuid() -> Outcome {
    users_file(0o6777)?;
    same("the mode", mode("f")?, 0o6777)?;
    chown("f", Some(0), Some(0))?;
    same("the mode", mode("f")?, 0o777)
}

fn write_removes_capabilities() -> Outcome {
    users_file(0o777)?;
    setxattr("f", "security.capability", CAPABILITY, XattrFlags::empty())?;
    as_user(&[], || Ok(users_open(OFlags::WRONLY)?.write_all(b"e")?))?;
    refused(Errno::NODATA, value("f", "security.capability"))
}

fn chown_removes_capabilities() -> Outcome {
    users_file(0o777)?;
    setxattr("f", "security.capability", CAPABILITY, XattrFlags::empty())?;
    chown("f", Some(0), Some(0))?;
    refused(Errno::NODATA, value("f", "security.capability"))
}

fn setgid_directory_gives_its_group() -> Outcome {
    std::fs::create_dir("d")?;
    chown("d", None, Some(EXTRA))?;
    std::fs::set_permissions("d", PermissionsExt::from_mode(0o2777))?;
    as_user(&[], || {
        File::create("d/f")?;
        std::fs::DirBuilder::new().mode(0o755).create("d/d")?;
        Ok(())
    })?;
    same("the file's group", stat("d/f")?.gid(), EXTRA)?;
    same("the directory's group", stat("d/d")?.gid(), EXTRA)?;
    same("the directory's mode", mode("d/d")?, 0o2755)
}

fn setgid_file_needs_the_group() -> Outcome {
    std::fs::create_dir("d")?;
    chown("d", None, Some(EXTRA))?;
    std::fs::set_permissions("d", PermissionsExt::from_mode(0o2777))?;
    let create = |path| {
        let made = File::options()
            .create_new(true)
            .write(true)
            .mode(0o2775)
            .open(path);
        made.map(drop)
    };
    as_user(&[], || Ok(create("d/stranger")?))?;
    as_user(&[EXTRA], || Ok(create("d/member")?))?;
    same("the stranger's mode", mode("d/stranger")?, 0o775)?;
    same("the member's mode", mode("d/member")?, 0o2775)
}

fn umask() -> Outcome {
    let before = rustix::process::umask(Mode::from(0o027));
    let file = File::create("f");
    let directory = std::fs::create_dir("d");
    rustix::process::umask(before);
    file?;
    directory?;
    same("the file's mode", mode("f")?, 0o640)?;
    same("the directory's mode", mode("d")?, 0o750)
}

fn supplementary_group_reads() -> Outcome {
    std::fs::write("f", "tide")?;
    chown("f", Some(0), Some(EXTRA))?;
    std::fs::set_permissions("f", PermissionsExt::from_mode(0o640))?;
    as_user(&[], || {
        refused(Errno::ACCESS, open("f", OFlags::RDONLY, Mode::empty()))
    })?;
    as_user(&[EXTRA], || {
        let mut read = String::new();
        users_open(OFlags::RDONLY)?.read_to_string(&mut read)?;
        same("the content", read.as_str(), "tide")?;
        refused(Errno::ACCESS, open("f", OFlags::WRONLY, Mode::empty()))
    })
}

fn supplementary_group_creates() -> Outcome {
    std::fs::create_dir("d")?;
    chown("d", Some(0), Some(EXTRA))?;
    std::fs::set_permissions("d", PermissionsExt::from_mode(0o770))?;
    as_user(&[EXTRA], || {
        File::create("d/f")?;
        std::fs::create_dir("d/d")?;
        std::os::unix::fs::symlink("f", "d/l")?;
        std::fs::rename("d/f", "d/g")?;
        Ok(std::fs::remove_file("d/g")?)
    })?;
    same("the directory's group", stat("d/d")?.gid(), GROUP)
}

fn created_file_is_the_users() -> Outcome {
    std::fs::set_permissions(".", PermissionsExt::from_mode(0o777))?;
    as_user(&[], || Ok(File::create("f").map(drop)?))?;
    same("the owner", stat("f")?.uid(), USER)?;
    same("the group", stat("f")?.gid(), GROUP)
}

fn access_asks_for_the_real_user() -> Outcome {
    std::fs::write("f", "tide")?;
    std::fs::set_permissions("f", PermissionsExt::from_mode(0o604))?;
    as_user(&[], || {
        rustix::fs::access("f", rustix::fs::Access::READ_OK)?;
        refused(
            Errno::ACCESS,
            rustix::fs::access("f", rustix::fs::Access::WRITE_OK),
        )?;
        refused(
            Errno::ACCESS,
            rustix::fs::access("f", rustix::fs::Access::EXEC_OK),
        )
    })
}

fn open_file_shows_chmod() -> Outcome {
    let file = File::create("f")?;
    file.metadata()?;
    std::fs::set_permissions("f", PermissionsExt::from_mode(0o751))?;
    same("the mode", file.metadata()?.mode() & 0o7777, 0o751)
}

fn open_file_outlives_its_mode() -> Outcome {
    users_file(0o600)?;
    as_user(&[], || {
        let mut file = users_open(OFlags::RDWR)?;
        std::fs::set_permissions("f", PermissionsExt::from_mode(0o000))?;
        refused(Errno::ACCESS, open("f", OFlags::RDONLY, Mode::empty()))?;
        file.write_all(b"ebb!")?;
        let mut read = String::new();
        file.read_to_string(&mut read)?;
        same("the rest", read.as_str(), "")
    })?;
    same("the content", std::fs::read("f")?, b"ebb!".to_vec())
}

fn set_times(access: Timespec, modification: Timespec) -> Outcome {
    let times = Timestamps {
        last_access: access,
        last_modification: modification,
    };
    Ok(utimensat(CWD, "f", &times, AtFlags::empty())?)
}

const fn time(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

/// Access and modification time, in seconds and nanoseconds.
fn times() -> Outcome<[(i64, i64); 2]> {
    let stat = stat("f")?;
    Ok([
        (stat.atime(), stat.atime_nsec()),
        (stat.mtime(), stat.mtime_nsec()),
    ])
}

fn nanoseconds() -> Outcome {
    File::create("f")?;
    set_times(
        time(1_000_000_000, 123_456_789),
        time(1_100_000_000, 987_654_321),
    )?;
    let expected = [(1_000_000_000, 123_456_789), (1_100_000_000, 987_654_321)];
    same("the times", times()?, expected)
}

fn far_times() -> Outcome {
    File::create("f")?;
    set_times(time(-1000, 1), time(5_000_000_000, 2))?;
    same("the times", times()?, [(-1000, 1), (5_000_000_000, 2)])
}

fn omitted_times() -> Outcome {
    File::create("f")?;
    set_times(time(1000, 1), time(2000, 2))?;
    set_times(time(0, UTIME_OMIT), time(3000, 3))?;
    same("the times", times()?, [(1000, 1), (3000, 3)])
}

fn time_of_now() -> Outcome {
    File::create("f")?;
    set_times(time(1000, 1), time(2000, 2))?;
    set_times(time(0, UTIME_NOW), time(3000, 3))?;
    let age = stat("f")?.accessed()?.elapsed().unwrap_or_default();
    holds(age < Duration::from_secs(60), "the access time is not now")?;
    same("the modification time", times()?[1], (3000, 3))
}

fn reading_updates_the_access_time() -> Outcome {
    std::fs::write("f", "tide")?;
    // Older than the modification time: mounted with `relatime`, such a time is updated.
    set_times(time(1000, 0), time(2000, 0))?;
    std::fs::read("f")?;
    holds(times()?[0].0 > 2000, "the access time is the old one")
}

fn writing_updates_times() -> Outcome {
    let mut file = File::create("f")?;
    set_times(time(1000, 0), time(2000, 0))?;
    file.write_all(b"tide")?;
    let stat = stat("f")?;
    holds(stat.mtime() > 2000, "the modification time is the old one")?;
    same("the access time", stat.atime(), 1000)
}

fn creating_updates_the_directory() -> Outcome {
    let before = stat(".")?;
    std::thread::sleep(Duration::from_millis(20));
    File::create("f")?;
    let created = stat(".")?;
    holds(
        created.modified()? > before.modified()?,
        "creating did not change it",
    )?;
    std::thread::sleep(Duration::from_millis(20));
    std::fs::remove_file("f")?;
    holds(
        stat(".")?.modified()? > created.modified()?,
        "removing did not change it",
    )
}

fn birth_time() -> Outcome {
    File::create("f")?;
    let statx = statx(CWD, "f", AtFlags::empty(), StatxFlags::BTIME)?;
    holds(
        statx.stx_mask & StatxFlags::BTIME.bits() != 0,
        "no time of birth",
    )
}
