//! tmpfs mounts that begin with what the image has in their place: the option `tmpcopyup` (OCI
//! runtime-spec 1.2, config.md "Linux mount options").
//!
//! libcontainer does not know the option. The launcher copies, when everything is mounted: a clone of
//! the root's mount alone shows what the tmpfs covers.
//!
//! Threat: the image decides what is copied. No link is followed, nothing is written through another
//! mount, and what does not fit into the tmpfs is an error.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags};

use super::mounts::is_read_only;

/// Of a mount, to ask for it.
const OPTION: &str = "tmpcopyup";

/// A tmpfs to be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyUp {
    /// A path of the container's.
    pub destination: PathBuf,
    /// Nothing may be written afterwards.
    pub read_only: bool,
}

/// Takes them out of a configuration's mounts.
pub fn take(mounts: &mut [Mount]) -> Vec<CopyUp> {
    let mut taken = Vec::new();
    for mount in mounts {
        let mut options = mount.options().clone().unwrap_or_default();
        if !options.iter().any(|option| option == OPTION) {
            continue;
        }
        options.retain(|option| option != OPTION);
        let read_only = is_read_only(&options);
        options.retain(|option| option != "ro");
        mount.set_options(Some(options));
        taken.push(CopyUp {
            destination: mount.destination().clone(),
            read_only,
        });
    }
    taken
}

/// Fills one.
///
/// # Errors
/// What the kernel says of the first file that cannot be copied.
pub fn fill(tmpfs: &CopyUp) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = rustix::mount::open_tree(CWD, "/", flags)?;
    let covered = directory(&root, &tmpfs.destination, ResolveFlags::IN_ROOT);
    if let Some(from) = unless_missing(covered)? {
        let open = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let to = rustix::fs::open(&tmpfs.destination, open, Mode::empty())?;
        copy_contents(&from, &to)?;
        copy_attributes(&rustix::fs::fstat(&from)?, to.as_fd())?;
    }
    if tmpfs.read_only {
        make_read_only(&tmpfs.destination)?;
    }
    Ok(())
}

/// Makes a mount read-only; what else holds for it goes on to hold.
///
/// # Errors
/// As `statvfs(3)` and `mount(2)`.
pub(super) fn make_read_only(mount: &Path) -> io::Result<()> {
    let now = rustix::fs::statvfs(mount)?.f_flag.bits();
    let kept = u32::try_from(now).map_err(io::Error::other)?;
    let flags = MountFlags::from_bits_truncate(kept) | MountFlags::BIND | MountFlags::RDONLY;
    Ok(rustix::mount::mount_remount(mount, flags, c"")?)
}

/// Opens a directory below another one.
fn directory(base: &OwnedFd, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(base, path, open, Mode::empty(), resolve)
}

/// Nothing, where nothing is that could be copied.
fn unless_missing<T>(opened: Result<T, Errno>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Copies what is in a directory into another, and so on below.
fn copy_contents(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if name == "." || name == ".." {
            continue;
        }
        copy(from, to, name).map_err(|error| {
            let error = format!("{}: {error}", name.display());
            io::Error::other(error)
        })?;
    }
    Ok(())
}

fn copy(from: &OwnedFd, to: &OwnedFd, name: &Path) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            match rustix::fs::mkdirat(to, name, mode) {
                // The mount point of something else.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let below = directory(from, name, ResolveFlags::empty())?;
            match directory(to, name, ResolveFlags::NO_XDEV) {
                Ok(target) => {
                    copy_contents(&below, &target)?;
                    copy_extended(&below, target.as_fd())?;
                    copy_attributes(&stat, target.as_fd())
                }
                Err(Errno::XDEV) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
            let target = rustix::fs::openat(to, name, make, Mode::RUSR | Mode::WUSR);
            let mut target = match target {
                Ok(target) => File::from(target),
                Err(Errno::EXIST) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            io::copy(&mut source, &mut target)?;
            copy_extended(&source, target.as_fd())?;
            copy_attributes(&stat, target.as_fd())
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(link, to, name)?;
            let (user, group) = owner(&stat);
            let no_follow = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::chownat(to, name, user, group, no_follow)?)
        }
        kind => {
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            let (user, group) = owner(&stat);
            let no_follow = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::chownat(to, name, user, group, no_follow)?)
        }
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    (Some(user), Some(group))
}

fn copy_extended(from: impl AsFd, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|&byte| byte == 0) {
        if name.is_empty() {
            continue;
        }
        let length = rustix::fs::fgetxattr(&from, name, &mut value)?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The tmpfs does not have this kind, or nobody may set it here.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The owner first: a change of owner takes set-id bits away.
fn copy_attributes(stat: &Stat, to: BorrowedFd<'_>) -> io::Result<()> {
    let (user, group) = owner(stat);
    rustix::fs::fchown(to, user, group)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let time = |tv_sec: i64, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(to, &times)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mount(options: &[&str]) -> Mount {
        let mount =
            serde_json::json!({ "destination": "/run", "type": "tmpfs", "options": options });
        serde_json::from_value(mount).unwrap()
    }

    #[test]
    fn the_option_is_taken_and_a_read_only_tmpfs_is_filled_first() {
        let mut mounts = [
            mount(&["nosuid", "tmpcopyup", "ro"]),
            mount(&["ro"]),
            mount(&["ro", "tmpcopyup", "rw"]),
        ];

        let taken = take(&mut mounts);

        let read_only: Vec<_> = taken.iter().map(|tmpfs| tmpfs.read_only).collect();
        assert_eq!(read_only, [true, false]);
        let options = |mount: &Mount| mount.options().clone().unwrap();
        assert_eq!(options(&mounts[0]), ["nosuid"]);
        assert_eq!(options(&mounts[1]), ["ro"]);
        assert_eq!(options(&mounts[2]), ["rw"]);
    }

    #[test]
    fn files_directories_and_links_are_copied_as_they_are() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| from.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("dir/file"), "tide").unwrap();
        fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o1730)).unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        fs::write(to.path().join("there"), "kept").unwrap();
        fs::write(at("there"), "lost").unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());

        copy_contents(&open(from.path()), &open(to.path())).unwrap();

        let copied = |name: &str| to.path().join(name);
        assert_eq!(fs::read(copied("dir/file")).unwrap(), b"tide");
        let mode = |name| fs::metadata(copied(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("dir/file"), mode("dir")), (0o4751, 0o1730));
        assert_eq!(
            fs::read_link(copied("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(fs::read(copied("there")).unwrap(), b"kept");
        let time = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(time(copied("dir/file")), time(at("dir/file")));
    }
}
