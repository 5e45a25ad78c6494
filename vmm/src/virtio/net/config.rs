//! What a card is to its driver, whoever moves its frames: features (virtio 1.3 §5.1.3), and the
//! configuration space (§5.1.4) with hardware address and MTU.

use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use crate::backend::vhost_net::VhostError;
use crate::virtio::device::copy_config;

/// Smallest MTU (virtio 1.3 §5.1.4.2).
const MIN_MTU: u16 = 68;

const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Why there is no network card.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// virtio 1.3 §5.1.4.2: the MTU is at least 68.
    #[error("MTU {0} is less than {MIN_MTU}")]
    Mtu(u16),
    /// A group's address, or none at all.
    #[error("{0:02x?} is no address of one network card")]
    Mac([u8; 6]),
    /// The host has no descriptor to spare.
    #[error("make the descriptors of a network card")]
    Host(#[source] io::Error),
}

/// Why a card is not connected to a tap.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// As many queues as pairs, or frames would come to a queue that nobody reads, or leave none. Nothing
    /// has changed.
    #[error("a network card with {pairs} pairs of queues takes a tap with as many, not {queues}")]
    Queues {
        /// Of the card.
        pairs: usize,
        /// Descriptors that came.
        queues: usize,
    },
    /// It does not take the offloads that the driver has accepted. Nothing has changed.
    #[error("set a tap's offloads")]
    Offloads(#[source] io::Error),
    /// The host's kernel does not take it.
    #[error("have the kernel serve a tap")]
    Vhost(#[source] VhostError),
    /// It was made without `IFF_MULTI_QUEUE`, or is gone.
    #[error("detach a queue of a tap")]
    Detach(#[source] io::Error),
}

/// `struct virtio_net_config` up to `mtu`; fields without their feature bit are zero.
#[derive(Debug)]
pub(super) struct Config {
    space: [u8; 12],
    features: u64,
}

impl Config {
    pub(super) fn new(mac: [u8; 6], mtu: Option<u16>, pairs: u8) -> Result<Self, NetError> {
        if let Some(mtu) = mtu.filter(|&mtu| mtu < MIN_MTU) {
            return Err(NetError::Mtu(mtu));
        }
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(NetError::Mac(mac));
        }
        let mut features = FEATURES;
        if mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        // §5.1.4.2: it is 1 to 0x8000 if there are several, and no field otherwise.
        let pairs = if pairs > 1 { u16::from(pairs) } else { 0 };
        if pairs > 0 {
            features |= 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
        }
        let mut space = [0; 12];
        // u8 mac[6]; le16 status; le16 max_virtqueue_pairs; le16 mtu.
        let fields = mac
            .into_iter()
            .chain([0; 2])
            .chain(pairs.to_le_bytes())
            .chain(mtu.unwrap_or(0).to_le_bytes());
        for (byte, value) in space.iter_mut().zip(fields) {
            *byte = value;
        }
        Ok(Self { space, features })
    }

    /// The features of a card, without those of its rings.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Reads `data.len()` bytes at `offset`; bytes past the end stay as they are.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.space, offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_and_the_mtu_have_their_places() {
        let config = Config::new([2, 0, 0, 0, 0, 7], Some(1450), 1).unwrap();
        let mut data = [0xff; 14];
        config.read(0, &mut data);
        assert_eq!(data[..6], [2, 0, 0, 0, 0, 7]);
        assert_eq!(data[6..10], [0; 4]);
        assert_eq!(data[10..], [0xaa, 0x05, 0xff, 0xff]);
    }

    /// virtio 1.3 §5.1.4: `max_virtqueue_pairs` exists if `VIRTIO_NET_F_MQ` is set, which requires
    /// `VIRTIO_NET_F_CTRL_VQ` (§5.1.3.1).
    #[test]
    fn a_card_of_several_pairs_says_how_many_and_one_of_one_pair_nothing() {
        for (pairs, field, offered) in [
            (1, [0, 0], 0),
            (2, [2, 0], 1 << 17 | 1 << 22),
            (4, [4, 0], 1 << 17 | 1 << 22),
        ] {
            let config = Config::new([2, 0, 0, 0, 0, 7], None, pairs).unwrap();
            let mut data = [0xff; 2];
            config.read(8, &mut data);
            assert_eq!(data, field);
            assert_eq!(config.features() & (1 << 17 | 1 << 22), offered);
        }
    }

    #[test]
    fn reads_at_any_place_stay_in_bounds() {
        let config = Config::new([2, 0, 0, 0, 0, 7], Some(1450), 1).unwrap();
        for offset in [11, 12, 13, usize::MAX] {
            config.read(offset, &mut [0; 8]);
        }
    }
}
