//! A bundle's configuration, and what of it goes into the guest.
//!
//! Translation is pure: a specification of the host's becomes one of the guest's and a list of what
//! the host has to share. What the guest cannot honour is refused by its field's name; what has no
//! meaning there is dropped, and the reason stands beside it.

mod devices;
mod load;
mod mounts;
mod namespaces;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};

use self::devices::Device;

pub use self::load::{BundleError, Malformed, host_root, load, read_resources, translate_process};
pub use self::mounts::{BlockSource, BlockVolume, Volume};
pub use self::namespaces::{Neighbours, Network, Nobody};
use crate::hooks::Hooks;

/// A field that a virtual machine, or Hull as it is, cannot honour (docs/limits.md).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is not supported: {reason}")]
pub struct Unsupported {
    field: String,
    reason: &'static str,
}

impl Unsupported {
    /// The configuration's `field` cannot be honoured.
    pub(crate) fn new(field: &str, reason: &'static str) -> Self {
        Self {
            field: field.to_owned(),
            reason,
        }
    }
}

/// What a container becomes in its guest.
#[derive(Debug, PartialEq)]
pub struct Guest {
    /// The configuration for the agent.
    pub spec: Spec,
    /// What its bind mounts are backed by, in their order.
    pub volumes: Vec<Volume>,
    /// Block devices that it mounts, or has as devices.
    pub block_volumes: Vec<BlockVolume>,
    /// Serial numbers of those that it has as devices, by their paths there.
    pub disks: HashMap<String, String>,
    /// Which network it is in.
    pub network: Network,
    /// What runs on the host.
    pub hooks: Hooks,
}

impl Guest {
    /// Tells its bind mounts where in the guest the volumes are, which are named in their order.
    pub fn place(&mut self, places: impl IntoIterator<Item = PathBuf>) {
        let mounts = self.spec.mounts_mut().as_deref_mut().unwrap_or_default();
        for (volume, place) in self.volumes.iter().zip(places) {
            mounts[volume.mount].set_source(Some(place));
        }
    }
}

/// Translates the configuration of container `id`, whose root the guest finds at `root`; where it finds
/// the volumes is for [`Guest::place`]. `neighbours` are the containers of the machine that it joins.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn translate(
    mut spec: Spec,
    id: &str,
    root_in_guest: &Path,
    neighbours: &impl Neighbours,
) -> Result<Guest, Unsupported> {
    let hooks = Hooks::take(&mut spec)?;
    if let Some(root) = spec.root_mut() {
        root.set_path(root_in_guest.to_owned());
    }
    if let Some(process) = spec.process_mut() {
        drop_labels(process);
    }
    // What a configuration without namespaces means.
    let (_, mut network) = namespaces::translate(&[], neighbours)?;
    let (mut block_volumes, mut disks) = (Vec::new(), HashMap::new());
    let numbers = neighbours.block_devices();
    let container_maps = spec.linux().as_ref().and_then(mounts::id_maps_of);
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(None);
        if linux.intel_rdt().is_some() {
            return unsupported(
                "linux.intelRdt",
                "the guest's processor has no such resources",
            );
        }
        if linux
            .net_devices()
            .as_ref()
            .is_some_and(|devices| !devices.is_empty())
        {
            return unsupported(
                "linux.netDevices",
                "a virtual machine takes none of the host's interfaces; have the engine connect the container to a network",
            );
        }
        if let Some(profile) = linux.seccomp() {
            check_seccomp(profile)?;
        }
        let asked = linux.namespaces().as_deref().unwrap_or_default();
        let (namespaces, asked_network) = namespaces::translate(asked, neighbours)?;
        linux.set_namespaces(Some(namespaces));
        network = asked_network;
        (block_volumes, disks) = place_devices(linux, numbers)?;
        if let Some(resources) = linux.resources() {
            devices::check_limits(resources)?;
        }
        // The guest's cgroups are its own: names of the host's, systemd's slices among them, mean
        // nothing there.
        linux.set_cgroups_path(Some(Path::new("/hull").join(id)));
    }
    let mut volumes = Vec::new();
    let mounts = spec.mounts_mut().iter_mut().flatten();
    for (place, mount) in mounts.enumerate() {
        if let Some(volume) = mounts::volume(mount, place, container_maps.as_ref())? {
            volumes.push(volume);
        } else if let Some(volume) = mounts::block_volume(mount, numbers + block_volumes.len())? {
            block_volumes.push(volume);
        }
    }
    Ok(Guest {
        spec,
        volumes,
        block_volumes,
        disks,
        network,
        hooks,
    })
}

/// Refuses a configuration that asks for the host's processes (`docker run --pid host`): one without a pid
/// namespace, which means the runtime's own (OCI config-linux.md "Namespaces").
///
/// # Errors
/// When it does.
pub fn check_has_pids(spec: &Spec) -> Result<(), Unsupported> {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref());
    let mut namespaces = namespaces.into_iter().flatten();
    if namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Pid) {
        return Ok(());
    }
    unsupported(
        "the host's pid namespace (--pid host, hostPID; linux.namespaces[pid] is not there)",
        "the container has a virtual machine with a kernel of its own, in which there are none of the host's \
         processes; leave the option out, share another container's processes with --pid container:NAME, use \
         another runtime for this container, or, if the machine's processes will do, set host_pid = \"machine\" \
         in /etc/hull/config.toml",
    )
}

/// The `oom_score_adj` of the container's process: 0 where the configuration has none, as a machine should not be
/// kept alive by what its engine is kept alive by (OCI runtime-spec 1.2, config.md "Linux Process").
///
/// # Errors
/// When it is none that the kernel has (proc(5)).
pub fn oom_score_adj(spec: &Spec) -> Result<i32, Unsupported> {
    let process = spec.process().as_ref();
    let score = process.and_then(Process::oom_score_adj).unwrap_or(0);
    if (-1000..=1000).contains(&score) {
        return Ok(score);
    }
    let field = format!("process.oomScoreAdj {score}");
    unsupported(&field, "it is -1000 to 1000")
}

/// Whether the container could bind privileged ports on a host.
#[must_use]
pub fn may_bind_privileged_ports(spec: &Spec) -> bool {
    let process = spec.process().as_ref();
    let capabilities = process.and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.and_then(|sets| sets.bounding().as_ref());
    bounding.is_some_and(|set| set.contains(&Capability::NetBindService))
}

/// Leaves the devices that the guest has; tells which are disks, numbered from `numbers` on.
fn place_devices(
    linux: &mut Linux,
    numbers: usize,
) -> Result<(Vec<BlockVolume>, HashMap<String, String>), Unsupported> {
    let (mut kept, mut volumes, mut disks) = (Vec::new(), Vec::new(), HashMap::new());
    for device in linux.devices().iter().flatten() {
        match devices::place(device, linux.resources().as_ref())? {
            Device::Left => continue,
            Device::Guests => {}
            Device::Disk { read_only } => {
                let serial = mounts::serial(numbers + volumes.len());
                let path = device.path().display().to_string();
                disks.insert(path, serial.clone());
                volumes.push(BlockVolume {
                    source: BlockSource::Number {
                        major: device.major(),
                        minor: device.minor(),
                    },
                    serial,
                    read_only,
                });
            }
        }
        kept.push(device.clone());
    }
    linux.set_devices(Some(kept));
    Ok((volumes, disks))
}

/// Refuses a profile that leaves a decision to a program of the host: it would be sent a descriptor of
/// the guest's kernel, and look into the memory of the guest's processes.
fn check_seccomp(profile: &LinuxSeccomp) -> Result<(), Unsupported> {
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let mut rules = profile.syscalls().iter().flatten();
    let field = if notifies(profile.default_action()) {
        "linux.seccomp.defaultAction"
    } else if rules.any(|rule| notifies(rule.action())) {
        "linux.seccomp.syscalls[].action"
    } else {
        return Ok(());
    };
    unsupported(
        field,
        "of SCMP_ACT_NOTIFY the listener is a program of the host, the system calls are the guest's",
    )
}

/// Drops the labels of modules that the guest's kernel does not have.
fn drop_labels(process: &mut Process) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

fn unsupported<T>(field: &str, reason: &'static str) -> Result<T, Unsupported> {
    Err(Unsupported::new(field, reason))
}
