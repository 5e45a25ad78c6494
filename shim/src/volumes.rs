//! The volumes that a sandbox's containers are shown.
//!
//! One that several have in the same way is mounted once: to the guest it is one file system then,
//! with one cache, and with locks that hold between the containers, as on a host of their own. Where
//! a container expects its volume there is a link to it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bundle::Volume;
use crate::share::{Share, ShareError, Sharing, VOLUMES};

/// The volumes of one sandbox.
#[derive(Debug, Default)]
pub struct Volumes {
    shown: Vec<Shown>,
    next: u64,
}

/// A volume on the share.
#[derive(Debug)]
struct Shown {
    source: PathBuf,
    /// Device and inode of the source: a path may mean something else later.
    file: (u64, u64),
    sharing: Sharing,
    /// Its folder on the share.
    folder: PathBuf,
    /// The containers that have it.
    users: Vec<String>,
}

impl Shown {
    /// Where in its folder it is: it may be a single file.
    fn place(&self) -> PathBuf {
        self.folder.join("volume")
    }
}

impl Volumes {
    /// Shows container `id` a volume.
    ///
    /// # Errors
    /// When its source does not exist, or the kernel refuses.
    pub fn show(&mut self, share: &Share, id: &str, volume: &Volume) -> Result<(), ShareError> {
        let source = &volume.source;
        let found = fs::metadata(source).map_err(|e| ShareError::Mount {
            path: source.clone(),
            source: e,
        })?;
        let file = (found.dev(), found.ino());
        let is_it = |shown: &&mut Shown| {
            shown.source == *source && shown.file == file && shown.sharing == volume.sharing
        };
        let place = if let Some(shown) = self.shown.iter_mut().find(is_it) {
            shown.users.push(id.to_owned());
            shown.place()
        } else {
            let shown = Shown {
                source: source.clone(),
                file,
                sharing: volume.sharing.clone(),
                folder: Path::new(VOLUMES).join(self.next.to_string()),
                users: vec![id.to_owned()],
            };
            self.next += 1;
            let place = shown.place();
            // Noted first: half of it may be there.
            self.shown.push(shown);
            share.add(source, &place, &volume.sharing)?;
            place
        };
        share.link(&place, &Path::new(id).join("mounts").join(&volume.name))
    }

    /// Takes the volumes from the share that container `id` alone has.
    ///
    /// # Errors
    /// When one stays mounted; it may be asked again.
    pub fn hide(&mut self, share: &Share, id: &str) -> Result<(), ShareError> {
        for shown in &mut self.shown {
            shown.users.retain(|user| user != id);
        }
        while let Some(number) = self.shown.iter().position(|it| it.users.is_empty()) {
            share.remove(&self.shown[number].folder)?;
            self.shown.swap_remove(number);
        }
        Ok(())
    }
}
