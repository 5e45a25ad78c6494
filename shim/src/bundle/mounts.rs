//! Mounts: what of them is the host's to provide. Directories and files go to the share, block devices
//! become disks of the machine.

use std::path::PathBuf;

use agent_protocol::disk_path;
use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};

use super::{Unsupported, unsupported};
use crate::bind_mount::Manner;
use crate::idmap::IdMaps;

/// Something of the host's that the guest mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path on the host: a directory or a single file.
    pub source: PathBuf,
    /// Which of the configuration's mounts it is for.
    pub mount: usize,
    /// How the guest is shown it.
    pub manner: Manner,
}

/// How a block device of the host is named.
#[derive(Debug, PartialEq, Eq)]
pub enum BlockSource {
    /// By a path.
    Path(PathBuf),
    /// By its numbers.
    Number {
        /// Major.
        major: i64,
        /// Minor.
        minor: i64,
    },
}

/// A block device of the host that becomes a disk of the machine.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockVolume {
    /// The device on the host.
    pub source: BlockSource,
    /// By which the guest finds the disk.
    pub serial: String,
    /// Whether the disk cannot be written.
    pub read_only: bool,
}

/// File systems that need nothing of the host: the guest's kernel makes them.
const GUESTS: [&str; 14] = [
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
];

fn has_option(mount: &Mount, wanted: &str) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| option == wanted)
}

/// OCI runtime-spec 1.2 §mounts: `rro` is `ro` with what is mounted below, as [`Manner::read_only`]
/// always is.
fn is_read_only(mount: &Mount) -> bool {
    has_option(mount, "ro") || has_option(mount, "rro")
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || has_option(mount, "bind")
        || has_option(mount, "rbind")
}

/// What `mount`, which is at `place` among the configuration's, needs of the host, if anything. What
/// the host does is taken out of it.
pub(super) fn volume(
    mount: &mut Mount,
    place: usize,
    container: Option<&Maps>,
) -> Result<Option<Volume>, Unsupported> {
    let id_maps = id_maps(mount, container)?;
    if !is_bind(mount) {
        return match id_maps {
            None => Ok(None),
            Some(_) => unsupported("mounts[].uidMappings", "only bind mounts can be idmapped"),
        };
    }
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return unsupported("mounts[].source", "a bind mount needs a source");
    }
    let manner = Manner {
        recursive: !has_option(mount, "bind") || has_option(mount, "rbind"),
        read_only: is_read_only(mount),
        id_maps,
    };
    let options = mount.options().iter().flatten();
    let for_guest = options.filter(|it| !matches!(it.as_str(), "idmap" | "ridmap"));
    let for_guest = for_guest.cloned().collect();
    mount
        .set_options(Some(for_guest))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    Ok(Some(Volume {
        source,
        mount: place,
        manner,
    }))
}

/// Maps of users and of groups.
pub(super) type Maps = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// Which ids `mount` maps, by its own maps or those of the container's user namespace.
fn id_maps(mount: &Mount, container: Option<&Maps>) -> Result<Option<IdMaps>, Unsupported> {
    let own = match (mount.uid_mappings().clone(), mount.gid_mappings().clone()) {
        (None, None) => None,
        (Some(users), Some(groups)) => Some((users, groups)),
        _ => {
            return unsupported(
                "mounts[].uidMappings",
                "it comes with gidMappings or not at all",
            );
        }
    };
    let recursive = has_option(mount, "ridmap");
    if own.is_none() && !recursive && !has_option(mount, "idmap") {
        return Ok(None);
    }
    let Some((users, groups)) = own.or_else(|| container.cloned()) else {
        return unsupported(
            "mounts[].options[idmap]",
            "neither the mount nor a user namespace says which ids to map",
        );
    };
    Ok(Some(IdMaps {
        users,
        groups,
        recursive,
    }))
}

/// The maps of a container's user namespace.
pub(super) fn id_maps_of(linux: &Linux) -> Option<Maps> {
    Some((linux.uid_mappings().clone()?, linux.gid_mappings().clone()?))
}

/// The block device that `mount` needs, if it is one's; the guest finds it by its serial number.
pub(super) fn block_volume(
    mount: &mut Mount,
    number: usize,
) -> Result<Option<BlockVolume>, Unsupported> {
    let kind = mount.typ().clone().unwrap_or_default();
    if is_bind(mount) || GUESTS.contains(&kind.as_str()) {
        return Ok(None);
    }
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return unsupported(
            &format!("mounts[].type[{kind}]"),
            "this file system is neither the guest's own nor on a block device",
        );
    }
    let serial = serial(number);
    mount.set_source(Some(disk_path(&serial)));
    Ok(Some(BlockVolume {
        source: BlockSource::Path(source),
        serial,
        read_only: is_read_only(mount),
    }))
}

/// Serial number of the disk that a block device becomes, by its number among all of the machine's.
pub(super) fn serial(number: usize) -> String {
    format!("volume{number}")
}
