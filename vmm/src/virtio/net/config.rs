//! Configuration space (virtio 1.3 §5.1.4): hardware address and MTU.

/// `struct virtio_net_config` up to `mtu`; fields without their feature bit are zero.
#[derive(Debug)]
pub(super) struct Config {
    space: [u8; 12],
    has_mtu: bool,
}

impl Config {
    pub(super) fn new(mac: [u8; 6], mtu: Option<u16>) -> Self {
        let mut space = [0; 12];
        // u8 mac[6]; le16 status; le16 max_virtqueue_pairs; le16 mtu.
        let fields = mac
            .into_iter()
            .chain([0; 4])
            .chain(mtu.unwrap_or(0).to_le_bytes());
        for (byte, value) in space.iter_mut().zip(fields) {
            *byte = value;
        }
        Self {
            space,
            has_mtu: mtu.is_some(),
        }
    }

    /// Whether the MTU's field is one (`VIRTIO_NET_F_MTU`).
    pub(super) fn has_mtu(&self) -> bool {
        self.has_mtu
    }

    /// Reads `data.len()` bytes at `offset`; bytes past the end stay as they are.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let field = self.space.get(offset..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(field) {
            *byte = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_and_the_mtu_have_their_places() {
        let config = Config::new([2, 0, 0, 0, 0, 7], Some(1450));
        let mut data = [0xff; 14];
        config.read(0, &mut data);
        assert_eq!(data[..6], [2, 0, 0, 0, 0, 7]);
        assert_eq!(data[6..10], [0; 4]);
        assert_eq!(data[10..], [0xaa, 0x05, 0xff, 0xff]);
    }

    #[test]
    fn reads_at_any_place_stay_in_bounds() {
        let config = Config::new([2, 0, 0, 0, 0, 7], Some(1450));
        for offset in [11, 12, 13, usize::MAX] {
            config.read(offset, &mut [0; 8]);
        }
    }
}
