//! The machine's disks by their serial numbers: the links that udev would make.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use agent_protocol::disk_path;

/// Major and minor of the disk with a serial number.
///
/// # Errors
/// When there is none.
pub fn numbers(serial: &str) -> io::Result<(i64, i64)> {
    let device = fs::metadata(disk_path(serial))?.rdev();
    let number = |part: u32| i64::from(part);
    Ok((number(libc::major(device)), number(libc::minor(device))))
}

/// Makes a link for each disk that has a serial number. They are all there when the kernel starts
/// its init.
///
/// # Errors
/// What the kernel says.
pub fn link() -> io::Result<()> {
    for disk in fs::read_dir("/sys/block")? {
        let disk = disk?;
        let Ok(serial) = fs::read_to_string(disk.path().join("serial")) else {
            // Not one of virtio's: a RAM disk, a loop device.
            continue;
        };
        let link = disk_path(serial.trim());
        fs::create_dir_all(link.parent().unwrap_or(&link))?;
        symlink(Path::new("/dev").join(disk.file_name()), link)?;
    }
    Ok(())
}
