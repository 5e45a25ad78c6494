//! vhost-net: the host's kernel moves the frames between a card's rings and its tap (linux/vhost.h).
//!
//! ```text
//!  new: owner, memory ──▶ start: features, rings ──▶ connect: the kernel serves the rings
//!                           ▲                          │  └─▶ connect: with another tap
//!                           └───────── stop ◀──────────┘
//! ```
//! What serves them is a thread that the kernel adds to this process (before Linux 6.4: one of its own, in this
//! process's cgroup) and that runs the kernel's code alone. It is there from `new` on, and sleeps
//! while nothing is connected.
//!
//! Threat: the guest, whose rings, chains and headers the kernel reads from here on, and not this
//! process. It follows descriptors within the memory table that it is given. The rings' own addresses
//! it takes as they are, of this process: a ring that begins in the guest's memory and ends behind it
//! would be this process's memory. So each part of a ring has to lie in one region.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::vring::Vring;
use crate::memory::Ram;

/// In place of a tap's descriptor: none (`VHOST_FILE_UNBIND`).
const UNBIND: RawFd = -1;

/// Why the host's kernel does not move a card's frames.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The kernel refused, or the descriptor is not one of `/dev/vhost-net`.
    #[error("{what} vhost-net")]
    Ioctl {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It has not what every virtio device of today has.
    #[error("vhost-net lacks VIRTIO_F_VERSION_1: it offers {0:#x}")]
    Features(u64),
}

/// What moves frames between a card's rings and its tap.
pub trait Vhost: Send {
    /// The virtio features it offers, of the rings and of the header before each frame.
    fn features(&self) -> u64;

    /// Hands over the rings, with what the driver accepted of these features. They rest until there
    /// is a tap.
    ///
    /// # Errors
    /// See [`VhostError`]; none of the rings is served then.
    fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), VhostError>;

    /// Connects the rings that were started, if any, to a tap, in place of the one they may have had.
    ///
    /// # Errors
    /// See [`VhostError`]; none of the rings is served then.
    fn connect(&mut self, tap: BorrowedFd<'_>) -> Result<(), VhostError>;

    /// Takes the rings back: once this returns nobody touches them.
    ///
    /// # Errors
    /// See [`VhostError`]. The kernel may then still serve them, and is asked again before they start
    /// anew.
    fn stop(&mut self) -> Result<(), VhostError>;
}

/// A descriptor of `/dev/vhost-net`.
#[derive(Debug)]
pub struct VhostFile {
    kernel: Kernel,
    features: u64,
    /// Rings that may have a tap.
    started: Vec<u8>,
}

/// What the library's calls need. The descriptor goes first: with it goes whatever touches memory.
#[derive(Debug)]
struct Kernel {
    file: OwnedFd,
    ram: Arc<Ram>,
}

impl VhostFile {
    /// Takes an open `/dev/vhost-net`, for this process and all of `ram`: what may be plugged of it
    /// has its addresses from the start.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn new(file: OwnedFd, ram: Ram) -> Result<Self, VhostError> {
        let ram = Arc::new(ram);
        let kernel = Kernel { file, ram };
        kernel.set_owner().map_err(failed("own"))?;
        let features = (kernel.get_features()).map_err(failed("ask for the features of"))?;
        if features & (1 << VIRTIO_F_VERSION_1) == 0 {
            return Err(VhostError::Features(features));
        }
        let regions: Vec<_> = (kernel.ram.iter())
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<_, _>>()
            .map_err(failed("describe memory to"))?;
        (kernel.set_mem_table(&regions)).map_err(failed("describe memory to"))?;
        Ok(Self {
            kernel,
            features,
            started: Vec::new(),
        })
    }
}

impl Vhost for VhostFile {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), VhostError> {
        // Nothing to do unless that has failed before: a ring that is served can't be moved.
        self.stop()?;
        (self.kernel.set_features(features)).map_err(failed("agree on features with"))?;
        for vring in vrings {
            (self.kernel.set_vring(vring)).map_err(failed("hand a ring over to"))?;
        }
        self.started = vrings.iter().map(|vring| vring.index).collect();
        Ok(())
    }

    fn connect(&mut self, tap: BorrowedFd<'_>) -> Result<(), VhostError> {
        let rings = self.started.iter();
        let connected = { rings }.try_for_each(|&ring| self.kernel.set_tap(ring, tap.as_raw_fd()));
        connected.map_err(|source| {
            // That it failed is the better reason.
            let _ = self.stop();
            let what = "give a tap to";
            VhostError::Ioctl { what, source }
        })
    }

    fn stop(&mut self) -> Result<(), VhostError> {
        for &ring in &self.started {
            (self.kernel.set_tap(ring, UNBIND)).map_err(|source| {
                let what = "take a ring back from";
                VhostError::Ioctl { what, source }
            })?;
        }
        self.started.clear();
        Ok(())
    }
}

impl Kernel {
    fn set_vring(&self, vring: &Vring<'_>) -> Result<(), vhost::Error> {
        let index = vring.index.into();
        self.set_vring_num(index, vring.size)?;
        self.set_vring_base(index, vring.next_available)?;
        let addresses = VringConfigData {
            queue_max_size: vring.size,
            queue_size: vring.size,
            desc_table_addr: vring.descriptors,
            avail_ring_addr: vring.available,
            used_ring_addr: vring.used,
            ..VringConfigData::default()
        };
        self.set_vring_addr(index, &addresses)?;
        self.set_vring_call(index, vring.call)?;
        self.set_vring_kick(index, vring.kick)
    }

    /// Connects a ring to a tap, or to nothing. It returns when nobody uses the former tap any more.
    #[expect(
        unsafe_code,
        reason = "the library has this ioctl for files alone that it opened itself"
    )]
    fn set_tap(&self, ring: u8, tap: RawFd) -> io::Result<()> {
        let backend = vhost_vring_file {
            index: ring.into(),
            fd: tap,
        };
        // SAFETY: VHOST_NET_SET_BACKEND reads one `vhost_vring_file`, and `backend` is one. From then on
        // the kernel reads and writes the ring and what its chains point to.
        // 1. All of that lies in `ram`: `is_valid` has seen to the ring, the kernel itself, by the
        //    memory table, sees to the chains.
        // 2. `ram` is mapped for longer than `file` is open.
        // 3. No Rust reference points into it: `vm_memory` hands out volatile slices only.
        let result = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &backend) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel {
    type AS = Arc<Ram>;

    fn mem(&self) -> &Self::AS {
        &self.ram
    }

    /// In place of the library's check, which looks at ends alone.
    fn is_valid(&self, ring: &VringConfigData) -> bool {
        in_one_piece(&self.ram, ring)
    }
}

/// Whether each part of a ring lies in one region of memory (sizes: virtio 1.3 §2.7; with the two bytes
/// of `VIRTIO_F_EVENT_IDX`).
fn in_one_piece(ram: &Ram, ring: &VringConfigData) -> bool {
    let size = usize::from(ring.queue_size);
    [
        (ring.desc_table_addr, 16 * size),
        (ring.avail_ring_addr, 6 + 2 * size),
        (ring.used_ring_addr, 6 + 8 * size),
    ]
    .into_iter()
    .all(|(address, len)| ram.get_slice(GuestAddress(address), len).is_ok())
}

fn failed(what: &'static str) -> impl FnOnce(vhost::Error) -> VhostError {
    move |error| {
        let source = match error {
            vhost::Error::IoctlError(source) => source,
            // Its words, since it has no source.
            other => io::Error::other(other),
        };
        VhostError::Ioctl { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const PAGE: u64 = 0x1000;

    #[test]
    fn a_file_that_is_not_vhost_net_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let ram = memory::allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let refused = VhostFile::new(file.into(), ram).unwrap_err();
        assert_eq!(refused.to_string(), "own vhost-net");
    }

    /// Regions that touch in the guest's addresses need not do so in this process's.
    #[test]
    fn a_ring_that_leaves_its_region_of_memory_is_refused() {
        let regions = [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x2000)];
        let ram = memory::allocate(&regions).unwrap();
        let ring = |parts: [u64; 3]| VringConfigData {
            queue_size: 16,
            desc_table_addr: parts[0],
            avail_ring_addr: parts[1],
            used_ring_addr: parts[2],
            ..VringConfigData::default()
        };
        let (table, available, used) = (16 * 16, 6 + 2 * 16, 6 + 8 * 16);
        for end in [2 * PAGE, 4 * PAGE] {
            let last = [end - table, end - available, end - used];
            assert!(in_one_piece(&ram, &ring(last)), "to the last byte");
            for part in 0..3 {
                let mut over = last;
                over[part] += 2;
                assert!(!in_one_piece(&ram, &ring(over)), "{part} before {end:#x}");
            }
        }
        assert!(!in_one_piece(&ram, &ring([0, PAGE, u64::MAX - 1])));
        assert!(!in_one_piece(&ram, &ring([4 * PAGE, 0, PAGE])));
    }
}
