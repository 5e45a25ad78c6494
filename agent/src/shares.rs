//! Directories of the host in the guest (virtio-fs).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::operation::{self, OperationError};
use crate::reaper::Reaper;

/// The shares that are mounted.
#[derive(Default)]
pub struct Shares {
    /// In the order of mounting. Held for one access alone.
    mounted: Mutex<Vec<PathBuf>>,
}

impl Shares {
    /// Mounts the share with virtio-fs tag `tag` at `path`, which is created.
    ///
    /// # Errors
    /// What the system says, in words.
    pub async fn mount(
        &self,
        reaper: &Reaper,
        tag: &str,
        path: &Path,
    ) -> Result<(), OperationError> {
        // In a process of its own: a mount waits for the host's virtiofsd.
        operation::run(reaper, "mount share", &[], || {
            let failed =
                |cause: &dyn std::fmt::Display| format!("{tag:?} at {}: {cause}", path.display());
            if !path.is_absolute() {
                return Err(failed(&"not an absolute path"));
            }
            fs::create_dir_all(path).map_err(|error| failed(&error))?;
            let flags = MsFlags::MS_NOATIME;
            mount(Some(tag), path, Some("virtiofs"), flags, None::<&str>)
                .map_err(|errno| failed(&errno.desc()))
        })
        .await?;
        self.mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path.to_owned());
        Ok(())
    }

    /// Writes everything back and unmounts.
    ///
    /// # Errors
    /// What the system says, in words.
    pub async fn unmount_all(&self, reaper: &Reaper) -> Result<(), OperationError> {
        let mounted = {
            let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *mounted)
        };
        operation::run(reaper, "unmount shares", &[], || {
            nix::unistd::sync();
            for path in mounted.iter().rev() {
                match umount2(path, MntFlags::empty()) {
                    // Somebody still uses it, but all was written back: out of the way with it.
                    Err(Errno::EBUSY) => umount2(path, MntFlags::MNT_DETACH),
                    done => done,
                }
                .map_err(|errno| format!("{}: {}", path.display(), errno.desc()))?;
            }
            Ok(())
        })
        .await
    }
}
