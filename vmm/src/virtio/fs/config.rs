//! Configuration space (virtio 1.3 §5.11.4): the tag, and the number of request queues.

use crate::virtio::device::copy_config;

/// Length of the tag's field in bytes.
pub(super) const TAG_LEN: usize = 36;

/// Request queues. One is enough for one vCPU's worth of requests in flight, and virtiofsd has one.
const NUM_REQUEST_QUEUES: u32 = 1;

/// The tag does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tag {0:?} has not 1 to {TAG_LEN} bytes without a NUL")]
pub struct TagError(String);

/// `struct virtio_fs_config` without `notify_buf_size`, which only its feature bit adds.
#[derive(Debug)]
pub(super) struct Config {
    space: [u8; TAG_LEN + 4],
}

impl Config {
    pub(super) fn new(tag: &str) -> Result<Self, TagError> {
        if tag.is_empty() || tag.len() > TAG_LEN || tag.contains('\0') {
            return Err(TagError(tag.to_owned()));
        }
        let mut space = [0; TAG_LEN + 4];
        let fields = tag.bytes().chain(std::iter::repeat(0)).take(TAG_LEN);
        let fields = fields.chain(NUM_REQUEST_QUEUES.to_le_bytes());
        for (byte, value) in space.iter_mut().zip(fields) {
            *byte = value;
        }
        Ok(Self { space })
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
    fn the_tag_is_padded_and_the_number_of_queues_follows() {
        let config = Config::new("hull").unwrap();
        let mut data = [0xff; 44];
        config.read(0, &mut data);
        assert_eq!(&data[..5], b"hull\0");
        assert_eq!(&data[5..36], &[0; 31]);
        assert_eq!(&data[36..], &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn reads_at_any_place_stay_in_bounds() {
        let config = Config::new("hull").unwrap();
        for offset in [39, 40, 41, usize::MAX] {
            config.read(offset, &mut [0; 8]);
        }
    }

    /// virtio 1.3 §5.11.4: "The tag is NUL padded if shorter than the available space."
    #[test]
    fn a_tag_takes_all_of_its_field_and_no_more() {
        assert!(Config::new(&"t".repeat(36)).is_ok());
        for bad in ["", &"t".repeat(37), "a\0b"] {
            assert_eq!(Config::new(bad).unwrap_err(), TagError(bad.to_owned()));
        }
    }
}
