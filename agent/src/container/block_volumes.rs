//! File systems on disks of the machine. The agent mounts them, and libcontainer binds them into the
//! container: it would not tell the file system itself that it is read-only, and in a user namespace
//! nobody may mount one.

use std::fs;
use std::path::{Path, PathBuf};

use agent_protocol::DISKS;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime::Mount;

use crate::operation::{self, OperationError};
use crate::reaper::Reaper;

/// Where they are mounted, a directory for each container.
const VOLUMES: &str = "/run/hull/volumes";

/// Options that are a mount's, whatever its file system; all others are the file system's own.
const GENERAL: [&str; 30] = [
    "async",
    "atime",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "relatime",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

/// One to be mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockVolume {
    device: PathBuf,
    kind: String,
    flags: MsFlags,
    /// The file system's own options.
    data: String,
    at: PathBuf,
}

/// Takes those of container `id` out of its mounts, which become bind mounts.
pub fn take(id: &str, mounts: &mut [Mount]) -> Vec<BlockVolume> {
    let mut volumes = Vec::new();
    for mount in mounts {
        let device = mount.source().clone().unwrap_or_default();
        if !device.starts_with(DISKS) {
            continue;
        }
        let options = mount.options().clone().unwrap_or_default();
        let (mut general, own): (Vec<_>, Vec<_>) = options
            .into_iter()
            .partition(|option| GENERAL.contains(&option.as_str()));
        let at = Path::new(VOLUMES).join(id).join(volumes.len().to_string());
        volumes.push(BlockVolume {
            device,
            kind: mount.typ().clone().unwrap_or_default(),
            flags: flags(&general),
            data: own.join(","),
            at: at.clone(),
        });
        general.retain(|option| !matches!(option.as_str(), "sync" | "async" | "dirsync"));
        general.push("bind".into());
        mount
            .set_typ(Some("bind".into()))
            .set_source(Some(at))
            .set_options(Some(general));
    }
    volumes
}

/// What the general options say of the file system itself; of those that contradict each other the
/// last one counts.
fn flags(options: &[String]) -> MsFlags {
    let mut flags = MsFlags::empty();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags -= MsFlags::MS_RDONLY,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "async" => flags -= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            _ => {}
        }
    }
    flags
}

/// Mounts them.
///
/// # Errors
/// What the kernel says of the first that it does not mount.
pub async fn mount_all(reaper: &Reaper, volumes: &[BlockVolume]) -> Result<(), OperationError> {
    if volumes.is_empty() {
        return Ok(());
    }
    operation::run(reaper, "mount block volumes", &[], || {
        for volume in volumes {
            let BlockVolume {
                device, kind, at, ..
            } = volume;
            fs::create_dir_all(at).map_err(|error| format!("{}: {error}", at.display()))?;
            let data = Some(volume.data.as_str());
            mount(Some(device), at, Some(kind.as_str()), volume.flags, data)
                .map_err(|errno| format!("{kind}: {}", reason(errno)))?;
        }
        Ok(())
    })
    .await
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENODEV => "the guest's kernel does not know this file system",
        Errno::EINVAL => "there is no such file system on the device, or it refuses an option",
        errno => errno.desc(),
    }
}

/// Unmounts those of container `id`, which writes back what they hold. It has no processes any more.
///
/// # Errors
/// What the kernel says of the last that it does not unmount.
pub async fn unmount_all(reaper: &Reaper, id: &str) -> Result<(), OperationError> {
    let directory = Path::new(VOLUMES).join(id);
    if !directory.exists() {
        return Ok(());
    }
    // In a process of its own: what is to be written may be much, and the host's device slow.
    operation::run(reaper, "unmount block volumes", &[], || {
        let mut failed = Ok(());
        for at in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let unmounted = match umount2(&at.path(), MntFlags::empty()) {
                // The container's mount namespace may be on its way out.
                Err(Errno::EBUSY) => umount2(&at.path(), MntFlags::MNT_DETACH),
                // It was never mounted.
                Err(Errno::EINVAL) => Ok(()),
                done => done,
            };
            if let Err(errno) = unmounted {
                failed = Err(format!("{}: {}", at.path().display(), errno.desc()));
            }
        }
        // Of those that are unmounted; never what is in one that is not.
        for at in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(at.path());
        }
        let _ = fs::remove_dir(&directory);
        failed
    })
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_is_mounted_by_the_agent_and_bound_by_libcontainer() {
        let mounts = json!([
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/data", "type": "ext4", "source": "/dev/disk/by-id/virtio-volume0",
              "options": ["ro", "sync", "noexec", "noload", "errors=panic"] },
        ]);
        let mut mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();

        let volumes = take("c1", &mut mounts);

        let volume = BlockVolume {
            device: "/dev/disk/by-id/virtio-volume0".into(),
            kind: "ext4".into(),
            flags: MsFlags::MS_RDONLY | MsFlags::MS_SYNCHRONOUS,
            data: "noload,errors=panic".into(),
            at: "/run/hull/volumes/c1/0".into(),
        };
        assert_eq!(volumes, [volume]);
        assert_eq!(mounts[0].typ().as_deref(), Some("tmpfs"));
        assert_eq!(mounts[1].typ().as_deref(), Some("bind"));
        let options = mounts[1].options().clone().unwrap();
        assert_eq!(options, ["ro", "noexec", "bind"]);
    }
}
