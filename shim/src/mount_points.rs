//! What is mounted on the host, and how it is unmounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Something stays mounted, or may.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// What is mounted cannot be told.
    #[error("read {TABLE}, which tells what is mounted")]
    Table(#[source] io::Error),
    /// The kernel refuses.
    #[error("unmount {}", path.display())]
    Refused {
        /// Which mount.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
}

/// What is mounted in this process's namespace (proc_pid_mountinfo(5)).
const TABLE: &str = "/proc/self/mountinfo";

/// Unmounts everything at or below `path`, the last mounted first. The folder `path` is in may be
/// named through links, as `/var/run` is; `path` itself is not followed. Nothing to do is no error.
///
/// # Errors
/// When the kernel refuses one, or does not tell what is mounted.
pub fn unmount_below(path: &Path) -> Result<(), UnmountError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let Ok(parent) = parent.canonicalize() else {
        // What is not there is no mount point.
        return Ok(());
    };
    let path = &parent.join(name);
    for point in mount_points(path)?.into_iter().rev() {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Gone with one that was mounted over it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => {
                return Err(UnmountError::Refused {
                    path: point,
                    source: e.into(),
                });
            }
        }
    }
    match mount_points(path)?.pop() {
        None => Ok(()),
        Some(path) => Err(UnmountError::Refused {
            path,
            source: io::ErrorKind::ResourceBusy.into(),
        }),
    }
}

/// Mount points at or below `path`, in the order in which they were mounted.
fn mount_points(path: &Path) -> Result<Vec<PathBuf>, UnmountError> {
    let table = fs::read(TABLE).map_err(UnmountError::Table)?;
    Ok(points(&table)
        .filter(|point| point.starts_with(path))
        .collect())
}

/// The mount points in a table. Names are bytes, whatever they mean: one that somebody else has made must
/// not hide the others.
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|point| PathBuf::from(OsString::from_vec(unescape(point))))
}

/// proc_pid_mountinfo(5): space, tab, newline and backslash stand as a backslash and three octal digits.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((&first, rest)) = text.split_first() {
        let (byte, rest) = match text {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                rest @ ..,
            ] => ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), rest),
            _ => (first, rest),
        };
        bytes.push(byte);
        text = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_understood() {
        assert_eq!(unescape(br"/a\040b\134c\011\04"), b"/a b\\c\t\\04");
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_mount() {
        let table = b"1 0 0:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:2 /\xff /mnt/\xfe rw - fuse \xff rw\n\
            3 1 0:3 / /run/hull/x/shared rw - tmpfs none rw\n";
        let found: Vec<PathBuf> = points(table).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[2], Path::new("/run/hull/x/shared"));
    }

    #[test]
    fn what_is_not_mounted_needs_no_unmounting() {
        unmount_below(Path::new("/proc/no/such/place")).unwrap();
    }
}
