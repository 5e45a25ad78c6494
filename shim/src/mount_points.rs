//! The host's mount table, and a part of it undone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::MntFlags;

/// Something is still mounted.
#[derive(Debug, thiserror::Error)]
#[error("unmount {}", path.display())]
pub struct UnmountError {
    path: PathBuf,
    source: io::Error,
}

/// Unmounts everything at or below `path`, the last mounted first. The folder `path` is in may be
/// named through links, as `/var/run` is; `path` itself is not followed.
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
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match nix::mount::umount2(&point, flags) {
            // Gone with one that was mounted over it.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
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
}
