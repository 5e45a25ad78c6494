//! Configuration space (virtio 1.3 §5.10.4): the guest's context identifier.

use crate::virtio::device::copy_config;

/// Reads `data.len()` bytes at `offset`; bytes past the end stay as they are.
pub(super) fn read(guest_cid: u64, offset: usize, data: &mut [u8]) {
    // le64 guest_cid; its upper half is reserved and zero.
    copy_config(&guest_cid.to_le_bytes(), offset, data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_read_gives_the_identifier_or_nothing() {
        let mut data = [0; 8];
        read(3, 0, &mut data);
        assert_eq!(data, [3, 0, 0, 0, 0, 0, 0, 0]);

        let mut data = [0xff; 8];
        read(3, 6, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);

        let mut data = [0xff; 2];
        read(3, usize::MAX, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
