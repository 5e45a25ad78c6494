//! virtio-net (virtio 1.3 §5.1): a network card whose other end is a tap.
//!
//! The tap may come, and be replaced, while the machine runs: container engines make the network of
//! a container that exists. Without one, what the driver sends is lost, as with no cable.
//!
//! One pair of queues (`pair`).
//!
//! Threat: the driver, and whoever sends to the tap. The driver's headers are checked
//! (`header`), its buffers have to be large enough for one; a frame that no set of its buffers
//! can hold is dropped, so that it does not block those behind it (CVE-2020-16843 was such a
//! freeze). Work in one call is bounded in both directions, and over time by the limits that the
//! machine's description has; a direction that waits for one holds its frame, or its chains, back.

mod config;
mod header;
mod pair;
mod vhost;

use std::io;
use std::os::fd::BorrowedFd;

use self::config::Config;
pub use self::config::NetError;
pub use self::pair::Limits;
use self::pair::Pair;
pub use self::vhost::VhostNet;
use crate::backend::tap::Tap;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::Queues;

/// virtio 1.3 §5.1.2: `receiveq1` and `transmitq1`.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The network card.
#[derive(Debug)]
pub struct Net<T> {
    config: Config,
    features: u64,
    pair: Pair<T>,
}

impl<T: Tap> Net<T> {
    /// A card with the given hardware address, and the MTU if the driver is to be told one; both ways
    /// as fast as `limits` allow.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(mac: [u8; 6], mtu: Option<u16>, limits: Limits) -> Result<Self, NetError> {
        Ok(Self {
            config: Config::new(mac, mtu)?,
            features: 0,
            pair: Pair::new(limits).map_err(|e| NetError::Epoll(e.into()))?,
        })
    }

    /// Connects the card to a tap, in place of the one it may have had.
    ///
    /// # Errors
    /// When the tap does not take the offloads that the driver has accepted; nothing has changed
    /// then.
    pub fn plug(&mut self, mut tap: T) -> io::Result<()> {
        tap.set_offloads(header::offloads(self.features))?;
        self.pair.plug(tap);
        Ok(())
    }
}

impl<T: Tap> Device for Net<T> {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.features = features;
        if let Some(tap) = self.pair.tap() {
            (tap.set_offloads(header::offloads(features)))
                .map_err(|e| DeviceError::Backend(format!("set a tap's offloads: {e}")))?;
        }
        Ok(self.pair.activate(features, queues)?)
    }

    fn reset(&mut self) {
        self.features = 0;
        self.pair.reset();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(self.pair.serve(index, queues)?)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pair.backend())
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(self.pair.serve_backend(queues)?)
    }
}

#[cfg(test)]
mod tests;
