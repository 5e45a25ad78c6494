//! Removing folders that others may have mounted something in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, open, openat2, unlinkat};
use rustix::io::Errno;

/// Removes a file, or a folder with all that is in it, but not what is mounted there: that is somebody
/// else's. Links are removed, and not followed. Nothing to do is no error.
///
/// # Errors
/// When something is mounted below it (`EXDEV`, `EBUSY`) or the kernel refuses; what could be removed
/// by then is.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let removed = if parent.as_os_str().is_empty() {
        remove(CWD, name)
    } else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(parent, flags, Mode::empty()).and_then(|parent| remove(parent.as_fd(), name))
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let folder = openat2(parent, name, flags, Mode::empty(), here)?;
    // Read to its end before anything of it goes.
    let entries: Vec<_> = Dir::read_from(&folder)?.collect::<rustix::io::Result<_>>()?;
    for entry in entries {
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            remove(folder.as_fd(), OsStr::from_bytes(name))?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn folders_files_and_links_go_and_what_links_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let (all, other) = (root.path().join("all"), root.path().join("other"));
        fs::create_dir_all(all.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(all.join("a/file"), "").unwrap();
        symlink(&other, all.join("a/link")).unwrap();
        symlink(&other, root.path().join("link")).unwrap();

        for path in [&all, &root.path().join("link"), &all] {
            remove_all(path).unwrap();
        }
        assert!(!all.exists() && other.join("kept").exists());
    }

    #[test]
    fn what_is_mounted_below_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let (folder, volume) = (root.path().join("state"), root.path().join("volume"));
        fs::create_dir_all(folder.join("shared/volumes/0")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("data"), "the user's").unwrap();
        // The mount is this thread's alone.
        unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace, as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let at = folder.join("shared/volumes/0");
        mount(Some(&volume), &at, none, MsFlags::MS_BIND, none).unwrap();

        let refused = remove_all(&folder).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::XDEV.raw_os_error()));
        assert_eq!(fs::read(volume.join("data")).unwrap(), b"the user's");
        umount2(&at, MntFlags::MNT_DETACH).unwrap();
        remove_all(&folder).unwrap();
    }
}
