//! The machine's disks by their serial numbers: the links that udev would make, and disks that come and
//! go while the machine runs.
//!
//! A virtio device that has nothing behind it says that it is none (virtio 1.3 §4.2.3.1.1), and the
//! kernel leaves it without a driver. It looks again when the device is bound to the driver by hand.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::disk_path;

use crate::operation::{self, OperationError};
use crate::reaper::Reaper;

/// The driver of virtio's memory-mapped devices.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// How long a disk may take to be there: the host may still be on its way with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(5);

/// Major and minor of the disk with a serial number.
///
/// # Errors
/// When there is none.
pub fn numbers(serial: &str) -> io::Result<(i64, i64)> {
    let device = fs::metadata(disk_path(serial))?.rdev();
    let number = |part: u32| i64::from(part);
    Ok((number(libc::major(device)), number(libc::minor(device))))
}

/// Makes a link for each disk that has a serial number. Those the machine starts with are all there when
/// the kernel starts its init.
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
        match symlink(Path::new("/dev").join(disk.file_name()), link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    Ok(())
}

/// Finds the disks with these serial numbers, which the host has just given the machine.
///
/// # Errors
/// When one of them does not come.
pub async fn add(reaper: &Reaper, serials: &[String]) -> Result<(), OperationError> {
    // In a process of its own: the kernel looks for partitions, and the host's device may be slow.
    operation::run(reaper, "add disks", &[], || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let looked = look_again().and_then(|()| link());
            looked.map_err(|error| format!("look for virtio devices: {error}"))?;
            let missing = serials.iter().find(|serial| !disk_path(serial).exists());
            match missing {
                None => return Ok(()),
                Some(serial) if Instant::now() >= deadline => {
                    return Err(format!("there is no disk {serial}"));
                }
                Some(_) => thread::sleep(PAUSE),
            }
        }
    })
    .await
}

/// Lets go of the disks with these serial numbers, and writes back what the kernel holds of them. Those
/// that are not there are gone already.
///
/// # Errors
/// What the kernel says.
pub async fn remove(reaper: &Reaper, serials: &[String]) -> Result<(), OperationError> {
    operation::run(reaper, "remove disks", &[], || {
        for serial in serials {
            let link = disk_path(serial);
            let Ok(disk) = fs::read_link(&link) else {
                continue;
            };
            let removed = device_of(&disk)
                .and_then(|device| tell("unbind", &device))
                .and_then(|()| fs::remove_file(&link));
            removed.map_err(|error| format!("{serial} ({}): {error}", disk.display()))?;
        }
        Ok(())
    })
    .await
}

/// Has the driver look at each device that it has left alone.
fn look_again() -> io::Result<()> {
    for device in fs::read_dir("/sys/bus/platform/devices")? {
        let device = device?;
        let is_virtio = is_virtio_mmio(&device.file_name());
        if !is_virtio || device.path().join("driver").exists() {
            continue;
        }
        match tell("bind", &device.file_name()) {
            // There is still nothing behind it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            told => told?,
        }
    }
    Ok(())
}

/// As the kernel names them: `virtio-mmio.3` for those of the command line, `a000600.virtio_mmio` for
/// those of the device tree.
fn is_virtio_mmio(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("virtio-mmio.") || name.ends_with(".virtio_mmio")
}

/// The device on the platform's bus that is behind a disk, which is named as in `/dev`.
fn device_of(disk: &Path) -> io::Result<OsString> {
    let name = disk.file_name().unwrap_or_default();
    // …/virtio-mmio.3/virtio4
    let virtio: PathBuf = fs::canonicalize(Path::new("/sys/block").join(name).join("device"))?;
    let device = virtio.parent().and_then(Path::file_name);
    let named = device.filter(|name| is_virtio_mmio(name));
    let missing = || io::Error::new(io::ErrorKind::NotFound, "no virtio device is behind it");
    named.map(OsStr::to_owned).ok_or_else(missing)
}

fn tell(what: &str, device: &OsStr) -> io::Result<()> {
    fs::write(Path::new(DRIVER).join(what), device.as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_memory_mapped_devices_are_told_from_others() {
        for (name, is) in [
            ("virtio-mmio.3", true),
            ("a000600.virtio_mmio", true),
            ("virtio-mmio-cmdline", false),
            ("serial8250", false),
            ("pcspkr", false),
        ] {
            assert_eq!(is_virtio_mmio(OsStr::new(name)), is, "{name}");
        }
    }
}
