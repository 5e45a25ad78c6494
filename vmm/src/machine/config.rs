//! What makes a machine, checked once before anything is built. Descriptors are checked by who takes
//! them over.

use vmm_control::{MAX_PAIRS, Nic, RateLimit, VmConfig};

use crate::arch::{self, MAX_VCPUS};

/// Devices of every machine, whatever is configured: socket and entropy.
const STANDARD_DEVICES: usize = 2;

/// Below this not even the smallest kernel starts, and the tables for it have no room.
const MIN_MEMORY_MIB: u32 = 16;

/// Bytes of a disk's serial number (virtio 1.3 §5.2.6.1).
const MAX_SERIAL: usize = 20;

/// Why a configuration makes no machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Too few or too many vCPUs.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// Too little memory.
    #[error("a machine has at least {MIN_MEMORY_MIB} MiB of memory, not {0}")]
    Memory(u32),
    /// A command line that ends early in the guest.
    #[error("the kernel command line has a byte that is no text at {0}")]
    Cmdline(usize),
    /// A serial number that would be cut, and then perhaps not be the only one of its kind.
    #[error("the serial number {0:?} of a disk has more than {MAX_SERIAL} bytes")]
    Serial(String),
    /// Too few or too many pairs of queues.
    #[error("a network card has 1 to {MAX_PAIRS} pairs of queues, not {0}")]
    Pairs(u8),
    /// Several threads would have to share a limit, or the kernel would need several descriptors.
    #[error("a network card with a limit or with vhost-net has one pair of queues, not {0}")]
    OnePair(u8),
    /// More devices than interrupts.
    #[error("{devices} devices are more than the {most} there are interrupts for")]
    Devices {
        /// All devices, with those of every machine.
        devices: usize,
        /// How many there may be.
        most: usize,
    },
}

/// Checks a configuration.
///
/// # Errors
/// The first rule it breaks.
pub(super) fn check<F>(config: &VmConfig<F>) -> Result<(), ConfigError> {
    if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
        return Err(ConfigError::Vcpus(config.vcpus));
    }
    if config.memory_mib < MIN_MEMORY_MIB {
        return Err(ConfigError::Memory(config.memory_mib));
    }
    if let Some(at) = config
        .cmdline
        .bytes()
        .position(|byte| byte.is_ascii_control())
    {
        return Err(ConfigError::Cmdline(at));
    }
    (config.disks.iter()).try_for_each(|disk| check_serial(&disk.serial))?;
    config.nics.iter().try_for_each(check_nic)?;
    let configured = config.disks.len() + config.nics.len() + config.shares.len();
    let configured = configured + config.pmems.len() + usize::from(config.spare_disks);
    let configured = configured + usize::from(config.balloon) + usize::from(config.hotplug_mib > 0);
    let devices = configured + STANDARD_DEVICES;
    match arch::MAX_DEVICES {
        most if devices > most => Err(ConfigError::Devices { devices, most }),
        _ => Ok(()),
    }
}

/// That of a disk, now or later.
pub(super) fn check_serial(serial: &str) -> Result<(), ConfigError> {
    if serial.len() > MAX_SERIAL {
        return Err(ConfigError::Serial(serial.to_owned()));
    }
    Ok(())
}

fn check_nic<F>(nic: &Nic<F>) -> Result<(), ConfigError> {
    let limited = [nic.receive_limit, nic.transmit_limit] != [RateLimit::default(); 2];
    match nic.pairs {
        1 => Ok(()),
        pairs if pairs == 0 || pairs > MAX_PAIRS => Err(ConfigError::Pairs(pairs)),
        pairs if limited || nic.vhost.is_some() => Err(ConfigError::OnePair(pairs)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use vmm_control::{Disk, MacAddress, TokenBucket};

    use super::*;

    fn config() -> VmConfig<()> {
        VmConfig {
            kvm: (),
            kernel: (),
            initrd: None,
            cmdline: "quiet".into(),
            vcpus: 1,
            memory_mib: 128,
            serial: None,
            pmems: vec![],
            disks: vec![],
            spare_disks: 0,
            nics: vec![],
            shares: vec![],
            balloon: false,
            hotplug_mib: 0,
            entropy_limit: RateLimit::default(),
        }
    }

    fn disk(serial: &str) -> Disk<()> {
        Disk {
            file: (),
            read_only: true,
            serial: serial.into(),
            rate_limit: RateLimit::default(),
        }
    }

    #[test]
    fn a_plain_machine_is_a_machine() {
        assert_eq!(check(&config()), Ok(()));
    }

    #[test]
    fn sizes_have_their_bounds() {
        for (vcpus, memory_mib, expected) in [
            (0, 128, Err(ConfigError::Vcpus(0))),
            (255, 128, Err(ConfigError::Vcpus(255))),
            (254, 128, Ok(())),
            (1, 0, Err(ConfigError::Memory(0))),
            (1, 15, Err(ConfigError::Memory(15))),
            (1, u32::MAX, Ok(())),
        ] {
            let config = VmConfig {
                vcpus,
                memory_mib,
                ..config()
            };
            assert_eq!(check(&config), expected);
        }
    }

    #[test]
    fn a_command_line_is_one_line_of_text() {
        for (cmdline, at) in [("a\0b", 1), ("quiet\n", 5), ("\u{7f}", 0)] {
            let cmdline = cmdline.into();
            let config = VmConfig {
                cmdline,
                ..config()
            };
            assert_eq!(check(&config), Err(ConfigError::Cmdline(at)));
        }
    }

    #[test]
    fn a_serial_number_is_not_cut() {
        let mut config = config();
        config.disks.push(disk("12345678901234567890"));
        assert_eq!(check(&config), Ok(()));
        config.disks.push(disk("123456789012345678901"));
        assert!(matches!(check(&config), Err(ConfigError::Serial(_))));
    }

    #[test]
    fn pairs_of_queues_have_their_bounds_and_limits_and_vhost_net_allow_one() {
        let bucket = TokenBucket {
            per_second: std::num::NonZeroU64::MIN,
            burst: 1,
        };
        let limit = RateLimit {
            bytes: None,
            operations: Some(bucket),
        };
        let none = RateLimit::default();
        for (pairs, vhost, receive_limit, transmit_limit, expected) in [
            (0, None, none, none, Err(ConfigError::Pairs(0))),
            (5, None, none, none, Err(ConfigError::Pairs(5))),
            (4, None, none, none, Ok(())),
            (1, Some(()), limit, none, Ok(())),
            (2, Some(()), none, none, Err(ConfigError::OnePair(2))),
            (2, None, limit, none, Err(ConfigError::OnePair(2))),
            (2, None, none, limit, Err(ConfigError::OnePair(2))),
        ] {
            let mut config = config();
            config.nics.push(Nic {
                pairs,
                taps: vec![],
                vhost,
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                mtu: None,
                receive_limit,
                transmit_limit,
            });
            assert_eq!(check(&config), expected);
        }
    }

    #[test]
    fn there_are_no_more_devices_than_interrupts() {
        let mut config = config();
        (config.balloon, config.hotplug_mib, config.spare_disks) = (true, 1, 2);
        config.pmems.push(());
        let most = arch::MAX_DEVICES;
        (config.disks).extend((STANDARD_DEVICES + 5..most).map(|_| disk("")));
        assert_eq!(check(&config), Ok(()));
        config.disks.push(disk(""));
        let devices = most + 1;
        assert_eq!(check(&config), Err(ConfigError::Devices { devices, most }));
    }
}
