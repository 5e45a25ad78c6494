//! The configuration space (virtio 1.3 §5.2.4).

use super::request::SECTOR;
use crate::virtio::device::copy_config;

/// Bytes of `struct virtio_blk_config` up to the fields of secure erase, which is not offered.
const LEN: usize = 60;

/// Bytes of a sector.
pub(super) const SECTOR_LEN: u32 = 512;
const _: () = assert!(SECTOR_LEN as u64 == SECTOR, "it is a sector's");

/// What the driver is told of a disk; fixed while it has a driver.
#[derive(Debug)]
pub(super) struct Config([u8; LEN]);

/// What there is to tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes, in whole sectors.
    pub(super) capacity: u64,
    /// Most bytes of a segment.
    pub(super) size_max: u32,
    /// Most data segments of a request.
    pub(super) seg_max: u32,
    /// Request queues.
    pub(super) queues: u16,
    /// Most sectors of one range to discard or to fill with zeroes.
    pub(super) range_max: u32,
    /// Most ranges of one request.
    pub(super) ranges_max: u32,
}

impl Config {
    pub(super) fn new(limits: Limits) -> Self {
        let mut config = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(8, &limits.size_max.to_le_bytes());
        put(12, &limits.seg_max.to_le_bytes());
        put(34, &limits.queues.to_le_bytes());
        put(36, &limits.range_max.to_le_bytes());
        put(40, &limits.ranges_max.to_le_bytes());
        put(48, &limits.range_max.to_le_bytes());
        put(52, &limits.ranges_max.to_le_bytes());
        // `write_zeroes_may_unmap`.
        put(56, &[1]);
        let mut config = Self(config);
        config.set_capacity(limits.capacity);
        config.set_block_size(SECTOR_LEN);
        config
    }

    /// Changes the bytes of a block: `blk_size`, and in sectors `discard_sector_alignment`.
    pub(super) fn set_block_size(&mut self, bytes: u32) {
        self.0[20..24].copy_from_slice(&bytes.to_le_bytes());
        self.0[44..48].copy_from_slice(&(bytes / SECTOR_LEN).to_le_bytes());
    }

    /// Changes how many bytes there are, in whole sectors.
    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.0[..8].copy_from_slice(&(bytes / SECTOR).to_le_bytes());
    }

    /// Bytes past the end stay as they are.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.0, offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_where_the_specification_has_it_and_nothing_follows() {
        let mut config = Config::new(Limits {
            capacity: 8 * SECTOR,
            size_max: 0x1111,
            seg_max: 0x2222,
            queues: 3,
            range_max: 0x4444,
            ranges_max: 0x5555,
        });
        let mut bytes = [0; 64];
        config.read(0, &mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            [word(0), word(4), word(8), word(12)],
            [8, 0, 0x1111, 0x2222]
        );
        assert_eq!(word(20), 512);
        assert_eq!(bytes[34..36], [3, 0]);
        assert_eq!([word(36), word(40), word(44)], [0x4444, 0x5555, 1]);
        assert_eq!(
            [word(48), word(52), word(56), word(60)],
            [0x4444, 0x5555, 1, 0]
        );
        config.set_block_size(4096);
        config.read(0, &mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(20), word(44)], [4096, 8]);
        for offset in [59, 60, 61, usize::MAX] {
            config.read(offset, &mut bytes);
        }
    }
}
