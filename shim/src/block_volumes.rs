//! Block devices of the host that become disks of the machine.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_EXCL;
use vmm_control::{Disk, RateLimit};

use crate::bundle::{BlockSource, BlockVolume};

/// Why a block device cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockVolumeError {
    /// It cannot be opened.
    #[error("open the block volume {}", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("{} is no block device; a directory or file is mounted with type bind", .0.display())]
    Kind(PathBuf),
    /// The host, or another machine, has it mounted.
    #[error("the block volume {} is in use; two kernels that write to it would destroy it", .0.display())]
    Busy(PathBuf),
}

/// Opens the devices. One that can be written is this machine's alone as long as it is open.
///
/// # Errors
/// When one is in use or no block device.
pub fn open(volumes: &[BlockVolume]) -> Result<Vec<Disk<OwnedFd>>, BlockVolumeError> {
    volumes.iter().map(open_one).collect()
}

/// Where the device is.
fn locate(source: &BlockSource) -> Result<PathBuf, BlockVolumeError> {
    match source {
        BlockSource::Path(path) => Ok(path.clone()),
        // The kernel's own name of it (sysfs(5)).
        BlockSource::Number { major, minor } => {
            let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
            match std::fs::canonicalize(&path) {
                Ok(device) => Ok(Path::new("/dev").join(device.file_name().unwrap_or_default())),
                Err(source) => Err(BlockVolumeError::Open { path, source }),
            }
        }
    }
}

fn open_one(volume: &BlockVolume) -> Result<Disk<OwnedFd>, BlockVolumeError> {
    let source = locate(&volume.source)?;
    let path = || source.clone();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::ResourceBusy => BlockVolumeError::Busy(path()),
        _ => BlockVolumeError::Open {
            path: path(),
            source,
        },
    };
    // Looked at first: opening a pipe would wait, and of some devices it is an action.
    let kind = std::fs::metadata(&source).map_err(failed)?;
    if !kind.file_type().is_block_device() {
        return Err(BlockVolumeError::Kind(path()));
    }
    // Of a block device O_EXCL means: nobody else has it mounted, or open like this (open(2)).
    let exclusive = if volume.read_only { 0 } else { O_EXCL };
    let file = OpenOptions::new()
        .read(true)
        .write(!volume.read_only)
        .custom_flags(exclusive)
        .open(&source)
        .map_err(failed)?;
    Ok(Disk {
        file: file.into(),
        read_only: volume.read_only,
        serial: volume.serial.clone(),
        rate_limit: RateLimit::default(),
    })
}
