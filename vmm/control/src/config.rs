//! The description of one virtual machine, generic over how a file is named.
//!
//! Each side works with `VmConfig<OwnedFd>`; on the wire it is `VmConfig<FdIndex>`, where an index
//! names a descriptor of the same packet. [`VmConfig::detach`] and [`VmConfig::attach`] convert, so
//! no caller ever counts descriptors.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What the length of each of [`VmConfig::pmems`] is a multiple of: as much as Linux maps at once.
pub const PMEM_ALIGNMENT: u64 = 2 << 20;

/// Most of [`Nic::pairs`].
pub const MAX_PAIRS: u8 = 4;

/// Position of a descriptor among those that came with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(usize);

/// Everything `hull-vmm` needs to build one virtual machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig<F> {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: F,
    /// Uncompressed kernel: an ELF with a PVH note on x86_64, an `Image` on aarch64.
    pub kernel: F,
    /// Initial RAM file system, loaded as the kernel's only module.
    pub initrd: Option<F>,
    /// Appended to the kernel command line that the VMM composes from the devices.
    pub cmdline: String,
    /// Virtual CPUs, at least one.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Where the guest's serial console goes. Without it the guest has no console at all.
    pub serial: Option<F>,
    /// Files that the guest reads in place, in the order of its `/dev/pmem0`, `/dev/pmem1`, … Each is a
    /// multiple of [`PMEM_ALIGNMENT`] long, and does not shrink as long as the machine lives.
    #[serde(default = "Vec::new")]
    pub pmems: Vec<F>,
    /// Disks in the order of the guest's `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<Disk<F>>,
    /// Further disks that have no file yet ([`Request::PlugDisk`](crate::Request::PlugDisk)). Each costs a
    /// thread, and the guest's kernel three looks.
    #[serde(default)]
    pub spare_disks: u8,
    /// Network interfaces in the order of the guest's `eth0`, `eth1`, …
    pub nics: Vec<Nic<F>>,
    /// Directories shared by a vhost-user file-system daemon.
    pub shares: Vec<Share<F>>,
    /// Whether there is a memory balloon, through which free memory goes back to the host.
    #[serde(default)]
    pub balloon: bool,
    /// Most memory in MiB that may be plugged besides `memory_mib` ([`Request::Memory`](crate::Request::Memory)).
    /// It costs nothing until it is.
    #[serde(default)]
    pub hotplug_mib: u32,
    /// How much entropy the guest may draw.
    #[serde(default)]
    pub entropy_limit: RateLimit,
}

/// How much a device may do over time. Without a bucket there is no bound of that kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Of bytes.
    pub bytes: Option<TokenBucket>,
    /// Of requests, whatever their size: frames, reads, writes, flushes.
    pub operations: Option<TokenBucket>,
}

/// A bucket that holds a number of tokens when it is full, and fills at a steady rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens that come in a second.
    pub per_second: NonZeroU64,
    /// Most tokens that wait to be used: what may be done at once after a pause.
    pub burst: u64,
}

/// A raw disk. The format is never guessed (GHSA-jmr4-g2hv-mjj6: a guest that writes a qcow2 header
/// into a probed raw disk reads any file of the host).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk<F> {
    /// The regular file or block device; its size at boot is the disk's capacity.
    pub file: F,
    /// Enforced by the device, whatever the descriptor would allow.
    pub read_only: bool,
    /// What the guest sees in `/sys/block/vd?/serial`; at most 20 bytes (virtio 1.3 §5.2.6.1).
    pub serial: String,
    /// Reads, writes and everything else together.
    #[serde(default)]
    pub rate_limit: RateLimit,
}

/// A network interface backed by a tap.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic<F> {
    /// Pairs of queues, 1 to [`MAX_PAIRS`]. Each but the first costs a thread and the guest's kernel a few dozen looks,
    /// and lets another processor of the guest's move frames. A card with a limit, or one of vhost-net's,
    /// has one.
    pub pairs: u8,
    /// As many descriptors of `/dev/net/tun` as pairs, each opened with `O_NONBLOCK`, which the VMM's filter
    /// keeps it from setting, and attached to the same tap with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and with
    /// `IFF_MULTI_QUEUE` if there are several. Without any the card has no cable until [`Request::Plug`](crate::Request::Plug).
    pub taps: Vec<F>,
    /// A descriptor of `/dev/vhost-net` of the card's own: with it the host's kernel moves the frames,
    /// and not the VMM. A card with a limit has its frames moved by the VMM all the same.
    pub vhost: Option<F>,
    /// The guest's hardware address.
    pub mac: MacAddress,
    /// The MTU in bytes that the guest is told and may not exceed, if any.
    pub mtu: Option<u16>,
    /// Frames to the guest, with their headers.
    #[serde(default)]
    pub receive_limit: RateLimit,
    /// Frames from the guest, with their headers.
    #[serde(default)]
    pub transmit_limit: RateLimit,
}

/// A directory shared with the guest through a vhost-user file-system daemon.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share<F> {
    /// A connected stream socket that speaks vhost-user, the daemon being the back end.
    pub daemon: F,
    /// The name under which the guest mounts it; at most 36 bytes (virtio 1.3 §5.11.4).
    pub tag: String,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

/// Why a configuration and the descriptors that came with it do not fit together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// An index points past the descriptors of the packet, or two point at the same one.
    #[error("descriptor {index} is missing or used twice among the {received} received")]
    Unusable {
        /// The index that could not be served.
        index: usize,
        /// How many descriptors the packet carried.
        received: usize,
    },
}

impl VmConfig<OwnedFd> {
    /// Splits the configuration into its wire form and the descriptors that travel with it.
    #[must_use]
    pub fn detach(self) -> (VmConfig<FdIndex>, Vec<OwnedFd>) {
        let mut fds = Vec::new();
        let wire: Result<_, std::convert::Infallible> = self.try_map(&mut |fd| {
            fds.push(fd);
            Ok(FdIndex(fds.len() - 1))
        });
        let Ok(wire) = wire;
        (wire, fds)
    }
}

impl VmConfig<FdIndex> {
    /// Joins a received configuration with the descriptors of its packet.
    ///
    /// # Errors
    /// When an index is out of range or used twice. Descriptors nobody asked for are closed.
    pub fn attach(self, fds: Vec<OwnedFd>) -> Result<VmConfig<OwnedFd>, DescriptorError> {
        let received = fds.len();
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        self.try_map(&mut |FdIndex(index)| {
            fds.get_mut(index)
                .and_then(Option::take)
                .ok_or(DescriptorError::Unusable { index, received })
        })
    }
}

impl<F> VmConfig<F> {
    /// Replaces every file by what `convert` makes of it, in the order of the fields.
    fn try_map<G, E>(self, convert: &mut impl FnMut(F) -> Result<G, E>) -> Result<VmConfig<G>, E> {
        Ok(VmConfig {
            kvm: convert(self.kvm)?,
            kernel: convert(self.kernel)?,
            initrd: self.initrd.map(&mut *convert).transpose()?,
            cmdline: self.cmdline,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            serial: self.serial.map(&mut *convert).transpose()?,
            pmems: (self.pmems.into_iter())
                .map(&mut *convert)
                .collect::<Result<_, E>>()?,
            disks: (self.disks.into_iter())
                .map(
                    |Disk {
                         file,
                         read_only,
                         serial,
                         rate_limit,
                     }| {
                        Ok(Disk {
                            file: convert(file)?,
                            read_only,
                            serial,
                            rate_limit,
                        })
                    },
                )
                .collect::<Result<_, E>>()?,
            nics: (self.nics.into_iter())
                .map(|nic| {
                    Ok(Nic {
                        pairs: nic.pairs,
                        taps: (nic.taps.into_iter())
                            .map(&mut *convert)
                            .collect::<Result<_, E>>()?,
                        vhost: nic.vhost.map(&mut *convert).transpose()?,
                        mac: nic.mac,
                        mtu: nic.mtu,
                        receive_limit: nic.receive_limit,
                        transmit_limit: nic.transmit_limit,
                    })
                })
                .collect::<Result<_, E>>()?,
            shares: (self.shares.into_iter())
                .map(|Share { daemon, tag }| {
                    Ok(Share {
                        daemon: convert(daemon)?,
                        tag,
                    })
                })
                .collect::<Result<_, E>>()?,
            balloon: self.balloon,
            spare_disks: self.spare_disks,
            hotplug_mib: self.hotplug_mib,
            entropy_limit: self.entropy_limit,
        })
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six two-digit hexadecimal numbers joined by colons.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no Ethernet address such as 02:00:00:00:00:01")]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                if part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()) {
                    u8::from_str_radix(part, 16).ok()
                } else {
                    None
                }
            })
            .collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| MacAddressError(text.to_owned()))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(file: impl Fn() -> OwnedFd) -> VmConfig<OwnedFd> {
        VmConfig {
            kvm: file(),
            kernel: file(),
            initrd: None,
            cmdline: "quiet".into(),
            vcpus: 1,
            memory_mib: 128,
            serial: Some(file()),
            pmems: vec![file()],
            disks: vec![Disk {
                file: file(),
                read_only: true,
                serial: "guest".into(),
                rate_limit: RateLimit {
                    bytes: Some(TokenBucket {
                        per_second: NonZeroU64::MIN,
                        burst: 7,
                    }),
                    operations: None,
                },
            }],
            nics: vec![Nic {
                pairs: 2,
                taps: vec![file(), file()],
                vhost: Some(file()),
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                mtu: None,
                receive_limit: RateLimit::default(),
                transmit_limit: RateLimit::default(),
            }],
            shares: vec![Share {
                daemon: file(),
                tag: "hull".into(),
            }],
            balloon: true,
            spare_disks: 2,
            hotplug_mib: 1024,
            entropy_limit: RateLimit::default(),
        }
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_configuration_survives_the_wire_with_its_descriptors_in_place() {
        let (wire, fds) = config(null).detach();
        assert_eq!(fds.len(), 9);

        let text = serde_json::to_string(&wire).unwrap();
        let back: VmConfig<FdIndex> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, wire);

        let attached = back.attach(fds).unwrap();
        assert!(attached.serial.is_some());
        assert_eq!(attached.disks[0].serial, "guest");
        let nic = &attached.nics[0];
        assert_eq!((nic.taps.len(), nic.vhost.is_some()), (2, true));
    }

    #[test]
    fn a_limit_is_none_unless_it_is_named_and_a_rate_of_zero_is_no_limit() {
        let text = r#"{"file":0,"read_only":true,"serial":"guest"}"#;
        let disk: Disk<FdIndex> = serde_json::from_str(text).unwrap();
        assert_eq!(disk.rate_limit, RateLimit::default());
        for (rate, good) in [(0, false), (1, true)] {
            let bucket = format!(r#"{{"per_second":{rate},"burst":1}}"#);
            assert_eq!(serde_json::from_str::<TokenBucket>(&bucket).is_ok(), good);
        }
    }

    #[test]
    fn a_missing_descriptor_is_refused() {
        let (wire, mut fds) = config(null).detach();
        fds.pop();
        assert_eq!(
            wire.attach(fds).unwrap_err(),
            DescriptorError::Unusable {
                index: 8,
                received: 8
            }
        );
    }

    #[test]
    fn a_descriptor_named_twice_is_refused() {
        let (mut wire, fds) = config(null).detach();
        wire.kernel = wire.kvm;
        assert_eq!(
            wire.attach(fds).unwrap_err(),
            DescriptorError::Unusable {
                index: 0,
                received: 9
            }
        );
    }

    #[test]
    fn an_ethernet_address_reads_back_as_it_was_written() {
        let mac: MacAddress = "02:42:ac:11:00:0a".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:ac:11:00:0a");
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:0a:00",
            "2:42:ac:11:00:0a",
            "+2:42:ac:11:00:0a",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
