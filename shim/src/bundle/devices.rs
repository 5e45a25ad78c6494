//! Devices, and limits for them: which of them a machine has.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxResources};

use super::{Unsupported, unsupported};

/// Devices that are the same in every kernel may be made in the guest; those of the host's hardware
/// are not there.
pub(super) fn check_device(device: &LinuxDevice) -> Result<(), Unsupported> {
    /// Major and minor of null, zero, full, random, urandom, tty, console, ptmx, tun and fuse.
    const VIRTUAL: [(i64, i64); 10] = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
        (10, 200),
        (10, 229),
    ];
    if !device.path().starts_with("/dev") {
        return unsupported(
            &format!("linux.devices[{}]", device.path().display()),
            "devices outside /dev come with a later version",
        );
    }
    let known = VIRTUAL.contains(&(device.major(), device.minor()))
        && matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
    if known || device.typ() == LinuxDeviceType::P {
        return Ok(());
    }
    unsupported(
        &format!("linux.devices[{}]", device.path().display()),
        "the host's devices are not in the virtual machine",
    )
}

/// Limits for devices of the host, which are not there, and for controllers that cgroup v2 does not
/// have, as the guest's cgroups are of that version.
pub(super) fn check_limits(resources: &LinuxResources) -> Result<(), Unsupported> {
    if let Some(io) = resources.block_io() {
        for (name, is_set) in [
            ("weightDevice", !none(io.weight_device())),
            (
                "throttleReadBpsDevice",
                !none(io.throttle_read_bps_device()),
            ),
            (
                "throttleWriteBpsDevice",
                !none(io.throttle_write_bps_device()),
            ),
            (
                "throttleReadIOPSDevice",
                !none(io.throttle_read_iops_device()),
            ),
            (
                "throttleWriteIOPSDevice",
                !none(io.throttle_write_iops_device()),
            ),
        ] {
            if is_set {
                return unsupported(
                    &format!("linux.resources.blockIO.{name}"),
                    "the host's devices are not in the virtual machine",
                );
            }
        }
    }
    if let Some(network) = resources.network()
        && (network.class_id().is_some() || !none(network.priorities()))
    {
        return unsupported("linux.resources.network", "cgroup v2 has no such limits");
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        return unsupported(
            "linux.resources.rdma",
            "the host's devices are not in the virtual machine",
        );
    }
    Ok(())
}

fn none<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}
