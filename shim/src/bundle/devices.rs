//! Devices, and limits for them: which of them a machine has.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Unsupported, unsupported};

/// What becomes of a device that the configuration lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// The guest makes it.
    Guests,
    /// A block device of the host: a disk of the machine.
    Disk {
        /// Nobody may write to it.
        read_only: bool,
    },
    /// It is not there.
    Left,
}

/// Devices that are the same in every kernel are made in the guest, and block devices of the host
/// become disks. Others are not there: a container that asks for one by name is refused, and one that
/// may use whatever there is, for which engines list all of the host's, gets what the guest has.
pub(super) fn place(
    device: &LinuxDevice,
    resources: Option<&LinuxResources>,
) -> Result<Device, Unsupported> {
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
    let known = VIRTUAL.contains(&(device.major(), device.minor()))
        && matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
    if known || device.typ() == LinuxDeviceType::P {
        return Ok(Device::Guests);
    }
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let rules = rules.unwrap_or_default();
    if rules.iter().any(allows_all) {
        return Ok(Device::Left);
    }
    if device.typ() == LinuxDeviceType::B {
        let read_only = !rules.iter().any(|rule| allows_writing(rule, device));
        return Ok(Device::Disk { read_only });
    }
    unsupported(
        &format!("linux.devices[{}]", device.path().display()),
        "the host's character devices are not in the virtual machine",
    )
}

fn any(number: Option<i64>) -> bool {
    number.is_none_or(|number| number == -1)
}

/// Whether a rule is that of a privileged container.
fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    rule.allow()
        && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
        && any(rule.major())
        && any(rule.minor())
}

fn allows_writing(rule: &LinuxDeviceCgroup, device: &LinuxDevice) -> bool {
    let covers = |number: Option<i64>, of_device| any(number) || number == Some(of_device);
    rule.allow()
        && rule.typ() == Some(LinuxDeviceType::B)
        && covers(rule.major(), device.major())
        && covers(rule.minor(), device.minor())
        && rule
            .access()
            .as_ref()
            .is_none_or(|access| access.contains('w'))
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
