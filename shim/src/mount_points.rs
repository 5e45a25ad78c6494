//! What is mounted on the host, and how it is unmounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Something stays mounted.
#[derive(Debug, thiserror::Error)]
#[error("unmount {}", path.display())]
pub struct UnmountError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Unmounts everything at or below `path`, the last mounted first. The folder `path` is in may be
/// named through links, as `/var/run` is; `path` itself is not followed. Nothing to do is no error.
///
/// # Errors
/// When the kernel refuses one.
pub fn unmount_below(path: &Path) -> Result<(), UnmountError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let Ok(parent) = parent.canonicalize() else {
        // What is not there is no mount point.
        return Ok(());
    };
    let path = &parent.join(name);
    for point in mount_points(path).into_iter().rev() {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Gone with one that was mounted over it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => {
                return Err(UnmountError {
                    path: point,
                    source: e.into(),
                });
            }
        }
    }
    match mount_points(path).pop() {
        None => Ok(()),
        Some(path) => Err(UnmountError {
            path,
            source: io::ErrorKind::ResourceBusy.into(),
        }),
    }
}

/// Mount points at or below `path`, in the order in which they were mounted.
fn mount_points(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(path))
        .collect()
}

/// proc(5): space, tab, newline and backslash stand as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_understood() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
    }

    #[test]
    fn what_is_not_mounted_needs_no_unmounting() {
        unmount_below(Path::new("/proc/no/such/place")).unwrap();
    }
}
