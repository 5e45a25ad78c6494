//! Block requests (virtio 1.3 §5.2.6): decoding, without any input or output.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestAddress;

/// Bytes of a sector (§5.2.6: "all in 512-byte units").
pub(super) const SECTOR: u64 = 512;

/// Length of the header: type, reserved, sector.
pub(super) const HEADER_LEN: u64 = 16;

/// Bytes of the answer to [`Request::Identify`].
pub(super) const ID_LEN: u32 = 20;

/// A piece of guest memory: where, and how many bytes.
pub(super) type Segment = (GuestAddress, u32);

/// What the driver wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Read from byte `offset` of the disk into the writable segments.
    Read {
        /// Byte offset in the disk; the whole range lies in it.
        offset: u64,
    },
    /// Write the readable segments to byte `offset` of the disk.
    Write {
        /// Byte offset in the disk; the whole range lies in it.
        offset: u64,
    },
    /// Make earlier writes durable.
    Flush,
    /// Tell the disk's serial number.
    Identify,
}

/// Why a request is refused with a status; the driver goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// `VIRTIO_BLK_S_IOERR`: outside of the disk, no whole sectors, or a write to a read-only disk.
    IoError,
}

/// What a request is measured against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    /// Bytes, in whole sectors.
    pub(super) capacity: u64,
    /// Whether it may not be written.
    pub(super) read_only: bool,
    /// Most bytes of data in a request.
    pub(super) request_max: u64,
}

impl Disk {
    /// Decodes a header. `readable` and `writable` are the bytes of data in either direction,
    /// without header and status.
    ///
    /// # Errors
    /// The status to answer with.
    pub(super) fn decode(
        &self,
        header: [u8; 16],
        readable: u64,
        writable: u64,
    ) -> Result<Request, Refusal> {
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, writable)?;
                Ok(Request::Read { offset })
            }
            VIRTIO_BLK_T_OUT if self.read_only => Err(Refusal::IoError),
            VIRTIO_BLK_T_OUT => {
                let offset = self.range(sector, readable)?;
                Ok(Request::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID if writable >= u64::from(ID_LEN) => Ok(Request::Identify),
            VIRTIO_BLK_T_GET_ID => Err(Refusal::IoError),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// The byte offset of `sector`, if `length` bytes from there on are whole sectors of the disk
    /// and no more than a request may have.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
        let end = offset.checked_add(length).ok_or(Refusal::IoError)?;
        let fits = end <= self.capacity && length <= self.request_max;
        if fits && length.is_multiple_of(SECTOR) {
            Ok(offset)
        } else {
            Err(Refusal::IoError)
        }
    }
}

/// Takes `length` bytes off the front of `segments`; `None` when there are fewer.
#[must_use]
pub(super) fn split_front(segments: &mut Vec<Segment>, mut length: u64) -> Option<Vec<Segment>> {
    let mut front = Vec::new();
    while length > 0 {
        let &(address, available) = segments.first()?;
        let taken = u32::try_from(length).unwrap_or(u32::MAX).min(available);
        front.push((address, taken));
        length -= u64::from(taken);
        if taken == available {
            segments.remove(0);
        } else {
            let rest = address.0.checked_add(taken.into())?;
            segments[0] = (GuestAddress(rest), available - taken);
        }
    }
    Some(front)
}

/// Takes the last byte off `segments`; `None` when there is none.
#[must_use]
pub(super) fn split_last(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    while segments.last()?.1 == 0 {
        segments.pop();
    }
    let (address, length) = segments.last_mut()?;
    *length -= 1;
    Some(GuestAddress(address.0.checked_add((*length).into())?))
}

/// Bytes in `segments`.
#[must_use]
pub(super) fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|&(_, length)| u64::from(length)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    const DISK: Disk = Disk {
        capacity: 8 * SECTOR,
        read_only: false,
        request_max: 6 * SECTOR,
    };

    #[test]
    fn each_kind_of_request_is_told_apart() {
        let decode = |kind| DISK.decode(header(kind, 1), 512, 512);
        assert_eq!(decode(0), Ok(Request::Read { offset: 512 }));
        assert_eq!(decode(1), Ok(Request::Write { offset: 512 }));
        assert_eq!(decode(4), Ok(Request::Flush));
        assert_eq!(decode(8), Ok(Request::Identify));
        for kind in [2, 11, 13, 99, u32::MAX] {
            assert_eq!(decode(kind), Err(Refusal::Unsupported), "{kind}");
        }
    }

    #[test]
    fn requests_outside_of_the_disk_or_of_part_sectors_or_too_large_are_refused() {
        for (sector, length) in [
            (8, 512),
            (7, 1024),
            (0, 9 * 512),
            (0, 511),
            (0, 513),
            (0, 7 * 512),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
        ] {
            for kind in [0, 1] {
                let request = DISK.decode(header(kind, sector), length, length);
                assert_eq!(request, Err(Refusal::IoError), "{kind} {sector} {length}");
            }
        }
        assert!(DISK.decode(header(0, 7), 0, 512).is_ok());
        assert!(DISK.decode(header(0, 2), 0, 6 * 512).is_ok());
    }

    #[test]
    fn a_read_only_disk_refuses_writes_and_nothing_else() {
        let disk = Disk {
            read_only: true,
            ..DISK
        };
        let refused = disk.decode(header(1, 0), 512, 0);
        assert_eq!(refused, Err(Refusal::IoError));
        assert!(disk.decode(header(0, 0), 0, 512).is_ok());
        assert_eq!(disk.decode(header(4, 0), 0, 0), Ok(Request::Flush));
    }

    #[test]
    fn a_serial_number_needs_its_room() {
        let refused = DISK.decode(header(8, 0), 0, 19);
        assert_eq!(refused, Err(Refusal::IoError));
        assert_eq!(DISK.decode(header(8, 0), 0, 20), Ok(Request::Identify));
    }

    #[test]
    fn segments_split_wherever_the_driver_cut_them() {
        let at = GuestAddress;
        let mut segments = vec![(at(0x100), 10), (at(0x200), 0), (at(0x300), 20)];
        let front = split_front(&mut segments, 16).unwrap();
        assert_eq!(front, [(at(0x100), 10), (at(0x200), 0), (at(0x300), 6)]);
        assert_eq!(split_last(&mut segments), Some(at(0x313)));
        assert_eq!(segments, [(at(0x306), 13)]);
        assert_eq!(length(&segments), 13);
        assert_eq!(split_front(&mut segments, 14), None);
        assert_eq!(split_last(&mut Vec::new()), None);
        assert_eq!(split_front(&mut vec![(at(u64::MAX - 4), 10)], 8), None);
    }
}
