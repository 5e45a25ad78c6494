//! The configuration space (virtio 1.3 §5.15.4). Pure.

use super::request::BLOCK;
use crate::virtio::device::copy_config;

/// `struct virtio_mem_config`, without what every device has alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Config {
    /// Where the region begins.
    pub(super) addr: u64,
    /// Its bytes.
    pub(super) region_size: u64,
    /// Its first bytes that the driver may plug.
    pub(super) usable_region_size: u64,
    /// Bytes that are plugged.
    pub(super) plugged_size: u64,
    /// Bytes that should be.
    pub(super) requested_size: u64,
}

impl Config {
    /// Reads from `offset` on; what lies behind the structure is left as it is.
    pub(super) fn read(self, offset: usize, data: &mut [u8]) {
        let fields = [
            BLOCK,
            // node_id and padding: there is one node (VIRTIO_MEM_F_ACPI_PXM is not offered).
            0,
            self.addr,
            self.region_size,
            self.usable_region_size,
            self.plugged_size,
            self.requested_size,
        ];
        let bytes = fields.map(u64::to_le_bytes);
        copy_config(bytes.as_flattened(), offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_at_its_place_at_any_width() {
        let config = Config {
            addr: 1 << 32,
            region_size: 3,
            usable_region_size: 4,
            plugged_size: 5,
            requested_size: 6,
        };
        for (offset, expected) in [
            (0, BLOCK),
            (8, 0),
            (16, 1 << 32),
            (24, 3),
            (32, 4),
            (40, 5),
            (48, 6),
        ] {
            let mut field = [0; 8];
            config.read(offset, &mut field);
            assert_eq!(u64::from_le_bytes(field), expected, "{offset}");
        }
        let mut byte = [0];
        config.read(20, &mut byte);
        assert_eq!(byte, [1]);
        let mut beyond = [0xee; 10];
        config.read(54, &mut beyond);
        assert_eq!(
            beyond,
            [0, 0, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]
        );
        config.read(usize::MAX, &mut beyond);
    }
}
