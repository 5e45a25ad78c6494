//! The card whose frames the host's kernel moves (vhost-net).
//!
//! Neither frame nor notification passes through here, as with virtio-fs: the driver's notifications
//! go to the kernel, which raises the interrupt itself. What is left: the configuration space, telling
//! the tap what the driver takes, and handing the queues over and taking them back.
//!
//! Until the first tap the driver's frames wait in its queue. From then on they are lost while there
//! is no cable, for the kernel sends them to the tap that was.
//!
//! The header before each frame has twelve bytes, `num_buffers` with it, as `VIRTIO_F_VERSION_1` says,
//! and its fields are little endian (virtio 1.3 §5.1.6); so they are to the tap, which was told the
//! length (`backend::tap`), on the hosts there are.
//!
//! One pair of queues, however many processors the guest has.
//!
//! Threat: what the driver writes is the kernel's to read, headers included (docs/security.md).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::config::Config;
use super::{NetError, PlugError, QUEUE_SIZES, header, warn_of_tap};
use crate::backend::tap::Tap;
use crate::backend::vhost_net::{Vhost, VhostError};
use crate::report;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::Queues;
use crate::virtio::vrings::vrings;

/// Of the features, those that the kernel has to have. The others are the tap's.
const KERNELS: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// The network card.
#[derive(Debug)]
pub struct VhostNet<T, V> {
    tap: Option<T>,
    vhost: V,
    config: Config,
    features: u64,
}

impl<T: Tap, V: Vhost> VhostNet<T, V> {
    /// A card with the given hardware address, and the MTU if the driver is to be told one.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(mac: [u8; 6], mtu: Option<u16>, vhost: V) -> Result<Self, NetError> {
        Ok(Self {
            tap: None,
            vhost,
            config: Config::new(mac, mtu, 1)?,
            features: 0,
        })
    }

    /// Connects the card to a tap of one queue, in place of the one it may have had. The driver may have waited for
    /// it: its queues have to be looked at again.
    ///
    /// # Errors
    /// See [`PlugError`].
    pub fn plug(&mut self, taps: Vec<T>) -> Result<(), PlugError> {
        let [mut tap] = <[T; 1]>::try_from(taps).map_err(|taps| PlugError::Queues {
            pairs: 1,
            queues: taps.len(),
        })?;
        (tap.set_offloads(header::offloads(self.features))).map_err(PlugError::Offloads)?;
        (self.vhost.connect(tap.as_fd())).map_err(PlugError::Vhost)?;
        self.tap = Some(tap);
        Ok(())
    }
}

impl<T: Tap, V: Vhost> Device for VhostNet<T, V> {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        (self.config.features() & !KERNELS) | (self.vhost.features() & KERNELS)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let failed = |error: VhostError| DeviceError::Backend(report::chain(&error));
        self.features = features;
        (self.vhost.start(features & KERNELS, &vrings(queues))).map_err(failed)?;
        let Some(mut tap) = self.tap.take() else {
            return Ok(());
        };
        // One that cannot be told is gone: that is a cable that was pulled, and another may come.
        if let Err(error) = tap.set_offloads(header::offloads(features)) {
            warn_of_tap(&error);
            return Ok(());
        }
        let tap = self.tap.insert(tap);
        self.vhost.connect(tap.as_fd()).map_err(failed)
    }

    fn reset(&mut self) {
        self.halt();
        self.features = 0;
    }

    fn serve(&mut self, _: usize, _: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn external_queues(&self) -> bool {
        true
    }

    fn halt(&mut self) {
        if let Err(error) = self.vhost.stop() {
            // The next activation tries again, and fails if that does.
            report::warn(format_args!(
                "halt a network card: {}",
                report::chain(&error)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
    use std::os::unix::net::UnixDatagram;

    use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

    use super::super::tests::{FakeTap, MAC, fake_tap};
    use super::*;
    use crate::backend::tap::Offloads;
    use crate::backend::vring::Vring;
    use crate::virtio::queue::testing::Driver;

    /// The kernel's, with the bits that are no business of a driver's: `VHOST_F_LOG_ALL`,
    /// `VHOST_NET_F_VIRTIO_NET_HDR`, `VIRTIO_F_ACCESS_PLATFORM`.
    const LINUX: u64 = 1 << 33 | 1 << 32 | 1 << 29 | 1 << 28 | 1 << 27 | 1 << 26 | 1 << 15;

    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        /// Features, and index and size of each ring.
        Start(u64, Vec<(u8, u16)>),
        Connect(RawFd),
        Stop,
    }

    #[derive(Debug, Default)]
    struct FakeKernel {
        features: u64,
        told: Vec<Told>,
        refuses_taps: bool,
    }

    impl Vhost for FakeKernel {
        fn features(&self) -> u64 {
            self.features
        }

        fn start(&mut self, features: u64, vrings: &[Vring<'_>]) -> Result<(), VhostError> {
            let rings = vrings.iter().map(|vring| (vring.index, vring.size));
            self.told.push(Told::Start(features, rings.collect()));
            Ok(())
        }

        fn connect(&mut self, tap: BorrowedFd<'_>) -> Result<(), VhostError> {
            if self.refuses_taps {
                return Err(VhostError::Features(0));
            }
            self.told.push(Told::Connect(tap.as_raw_fd()));
            Ok(())
        }

        fn stop(&mut self) -> Result<(), VhostError> {
            self.told.push(Told::Stop);
            Ok(())
        }
    }

    fn card(features: u64) -> VhostNet<FakeTap, FakeKernel> {
        let kernel = FakeKernel {
            features,
            ..FakeKernel::default()
        };
        VhostNet::new(MAC, Some(1500), kernel).unwrap()
    }

    /// A tap with the number of its descriptor.
    fn numbered_tap() -> (FakeTap, RawFd, UnixDatagram) {
        let (tap, wire, _) = fake_tap();
        let number = tap.as_fd().as_raw_fd();
        (tap, number, wire)
    }

    #[test]
    fn the_driver_sees_what_both_the_card_and_the_kernel_have() {
        let offered = card(LINUX).features();
        let ring = 1 << 32 | 1 << 29 | 1 << 28;
        assert_eq!(offered & !0xff_ffff, ring);
        assert_eq!(offered & 0xff_ffff, card(LINUX).config.features());
        let old = card(1 << 32).features();
        assert_eq!(
            old,
            (offered & !ring & !(1 << VIRTIO_NET_F_MRG_RXBUF)) | 1 << 32
        );
    }

    #[test]
    fn the_kernel_has_the_rings_from_activation_to_reset_and_each_tap_in_turn() {
        let mut card = card(LINUX);
        let mut driver = Driver::new(&QUEUE_SIZES);
        let (first, first_number, _wire) = numbered_tap();
        let (second, second_number, _wire) = numbered_tap();
        let features = card.features();
        card.activate(features, &mut driver.queues()).unwrap();
        card.plug(vec![first]).unwrap();
        card.plug(vec![second]).unwrap();
        card.reset();
        card.activate(1 << 32, &mut driver.queues()).unwrap();

        let rings = vec![(0, 256), (1, 256)];
        let all = 1 << 32 | 1 << 29 | 1 << 28 | 1 << VIRTIO_NET_F_MRG_RXBUF;
        let expected = [
            Told::Start(all, rings.clone()),
            Told::Connect(first_number),
            Told::Connect(second_number),
            Told::Stop,
            Told::Start(1 << 32, rings),
            Told::Connect(second_number),
        ];
        assert_eq!(card.vhost.told, expected);
    }

    #[test]
    fn the_kernel_has_no_ring_of_a_card_that_is_halted() {
        let mut card = card(LINUX);
        let mut driver = Driver::new(&QUEUE_SIZES);
        card.activate(1 << 32, &mut driver.queues()).unwrap();
        card.vhost.told.clear();
        card.halt();
        assert_eq!(card.vhost.told, [Told::Stop]);
    }

    #[test]
    fn a_queue_that_the_driver_has_not_set_up_is_not_the_kernels() {
        let mut card = card(LINUX);
        let mut driver = Driver::new(&QUEUE_SIZES);
        driver.retire(0);
        card.activate(1 << 32, &mut driver.queues()).unwrap();
        let expected = [Told::Start(1 << 32, vec![(1, 256)])];
        assert_eq!(card.vhost.told, expected);
    }

    #[test]
    fn each_tap_is_told_what_the_driver_accepted() {
        let mut card = card(LINUX);
        let (tap, _wire, host) = fake_tap();
        card.plug(vec![tap]).unwrap();
        let features = 1 << 32 | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
        let mut driver = Driver::new(&QUEUE_SIZES);
        card.activate(features, &mut driver.queues()).unwrap();
        let (another, _wire, anothers) = fake_tap();
        card.plug(vec![another]).unwrap();

        let tso4 = Offloads {
            checksum: true,
            tso4: true,
            ..Offloads::default()
        };
        let told = |host: &super::super::tests::Host| host.offloads.clone();
        assert_eq!(told(&host.lock().unwrap()), [Offloads::default(), tso4]);
        assert_eq!(told(&anothers.lock().unwrap()), [tso4]);
    }

    #[test]
    fn a_tap_that_was_deleted_does_not_keep_the_card_from_the_next() {
        let mut card = card(LINUX);
        let (tap, _wire, host) = fake_tap();
        card.plug(vec![tap]).unwrap();
        host.lock().unwrap().deleted = true;
        card.vhost.told.clear();
        let mut driver = Driver::new(&QUEUE_SIZES);
        card.activate(1 << 32, &mut driver.queues()).unwrap();
        let (next, number, _wire) = numbered_tap();
        card.plug(vec![next]).unwrap();
        let expected = [
            Told::Start(1 << 32, vec![(0, 256), (1, 256)]),
            Told::Connect(number),
        ];
        assert_eq!(card.vhost.told, expected);
    }

    #[test]
    fn a_tap_that_the_kernel_refuses_is_an_error_then_and_at_activation() {
        let mut card = card(LINUX);
        let (tap, ..) = fake_tap();
        card.plug(vec![tap]).unwrap();
        card.vhost.refuses_taps = true;
        let mut driver = Driver::new(&QUEUE_SIZES);
        let activated = card.activate(1 << 32, &mut driver.queues());
        assert!(matches!(activated, Err(DeviceError::Backend(why)) if why.contains("vhost-net")));
        let (another, ..) = fake_tap();
        let refused = card.plug(vec![another]);
        assert!(matches!(refused, Err(PlugError::Vhost(_))));
    }
}
