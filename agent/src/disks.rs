//! The machine's disks by their serial numbers: the links that udev would make.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use agent_protocol::disk_path;

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
