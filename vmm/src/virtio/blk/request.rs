//! Block requests (virtio 1.3 §5.2.6): decoding, without any input or output.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

/// Bytes of a sector (§5.2.6: "all in 512-byte units").
pub(super) const SECTOR: u64 = 512;

/// Length of the header: type, reserved, sector.
pub(super) const HEADER_LEN: usize = 16;

/// Bytes of the answer to [`Request::Identify`].
pub(super) const ID_LEN: u32 = 20;

/// Length of a range of [`Request::Discard`] or [`Request::WriteZeroes`]: sector, number, flags.
const RANGE_LEN: u64 = 16;

/// Most ranges of one such request.
pub(super) const RANGES_MAX: u32 = 32;

/// Most sectors of one range: 1 GiB.
pub(super) const RANGE_MAX: u32 = 1 << 21;

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
    /// Forget what is in the ranges that the readable segments name.
    Discard,
    /// Make the ranges that the readable segments name read as zeroes.
    WriteZeroes,
}

/// A part of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// Byte offset in the disk; the whole range lies in it.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Whether the space may be given back to the host.
    pub(super) unmap: bool,
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
        header: [u8; HEADER_LEN],
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
            // "All writes" to a read-only device fail (§5.2.6.2).
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.read_only || !is_ranges(readable) =>
            {
                Err(Refusal::IoError)
            }
            VIRTIO_BLK_T_DISCARD => Ok(Request::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES => Ok(Request::WriteZeroes),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Decodes the ranges of a [`Request::Discard`] or [`Request::WriteZeroes`].
    ///
    /// # Errors
    /// The status to answer with: reserved flags, and "unmap" for what is discarded anyway, are not
    /// supported (§5.2.6.2).
    pub(super) fn ranges(&self, request: &Request, data: &[u8]) -> Result<Vec<Range>, Refusal> {
        let known = match request {
            Request::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        let (ranges, _) = data.as_chunks();
        (ranges.iter())
            .map(|&[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]| {
                let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                let sectors = u32::from_le_bytes([i, j, k, l]);
                let flags = u32::from_le_bytes([m, n, o, p]);
                if flags & !known != 0 {
                    return Err(Refusal::Unsupported);
                }
                let length = u64::from(sectors) * SECTOR;
                let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
                let end = offset.checked_add(length).ok_or(Refusal::IoError)?;
                if end > self.capacity || sectors > RANGE_MAX {
                    return Err(Refusal::IoError);
                }
                let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                Ok(Range {
                    offset,
                    length,
                    unmap,
                })
            })
            .collect()
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

/// Whether so many bytes are ranges, at least one and no more than there may be.
fn is_ranges(length: u64) -> bool {
    length > 0 && length.is_multiple_of(RANGE_LEN) && length / RANGE_LEN <= u64::from(RANGES_MAX)
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
    use proptest::collection::vec;
    use proptest::prelude::*;

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
        for kind in [2, 14, 99, u32::MAX] {
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
        for kind in [11, 13] {
            let refused = disk.decode(header(kind, 0), 16, 0);
            assert_eq!(refused, Err(Refusal::IoError));
        }
        assert!(disk.decode(header(0, 0), 0, 512).is_ok());
        assert_eq!(disk.decode(header(4, 0), 0, 0), Ok(Request::Flush));
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [
            sector.to_le_bytes().as_slice(),
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    }

    #[test]
    fn ranges_are_whole_and_not_too_many() {
        let all = u64::from(RANGES_MAX) * 16;
        for (length, good) in [
            (0, false),
            (15, false),
            (16, true),
            (24, false),
            (all, true),
            (all + 16, false),
        ] {
            for (kind, request) in [(11, Request::Discard), (13, Request::WriteZeroes)] {
                let expected = if good {
                    Ok(request)
                } else {
                    Err(Refusal::IoError)
                };
                assert_eq!(
                    DISK.decode(header(kind, 0), length, 0),
                    expected,
                    "{length}"
                );
            }
        }
    }

    /// virtio 1.3 §5.2.6.2: "The device MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard,
    /// secure erase and write zeroes commands if any unknown flag is set. Furthermore, the device
    /// MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard commands if the unmap flag is set."
    #[test]
    fn flags_that_are_reserved_are_not_supported() {
        for (request, flags, good) in [
            (Request::Discard, 0, true),
            (Request::Discard, 1, false),
            (Request::WriteZeroes, 0, true),
            (Request::WriteZeroes, 1, true),
            (Request::WriteZeroes, 2, false),
            (Request::WriteZeroes, 1 << 31 | 1, false),
        ] {
            let decoded = DISK.ranges(&request, &range(1, 2, flags));
            let unmap = flags == 1;
            let (offset, length) = (512, 1024);
            let expected = if good {
                Ok(vec![Range {
                    offset,
                    length,
                    unmap,
                }])
            } else {
                Err(Refusal::Unsupported)
            };
            assert_eq!(decoded, expected, "{request:?} {flags:#x}");
        }
    }

    #[test]
    fn ranges_outside_of_the_disk_are_refused_all_together() {
        for (sector, sectors) in [
            (8, 1),
            (7, 2),
            (0, 9),
            (u64::MAX, 1),
            (1 << 55, 1),
            (0, u32::MAX),
        ] {
            let data = [range(0, 1, 0), range(sector, sectors, 0)].concat();
            let refused = DISK.ranges(&Request::WriteZeroes, &data);
            assert_eq!(refused, Err(Refusal::IoError), "{sector} {sectors}");
        }
        assert!(DISK.ranges(&Request::Discard, &range(8, 0, 0)).is_ok());
        let large = Disk {
            capacity: u64::MAX / SECTOR * SECTOR,
            ..DISK
        };
        assert!(
            large
                .ranges(&Request::Discard, &range(7, RANGE_MAX, 0))
                .is_ok()
        );
        assert!(
            large
                .ranges(&Request::Discard, &range(7, RANGE_MAX + 1, 0))
                .is_err()
        );
    }

    #[test]
    fn a_serial_number_needs_its_room() {
        let refused = DISK.decode(header(8, 0), 0, 19);
        assert_eq!(refused, Err(Refusal::IoError));
        assert_eq!(DISK.decode(header(8, 0), 0, 20), Ok(Request::Identify));
    }

    proptest! {
        /// No byte is lost, added or moved, wherever header and status are cut off.
        #[test]
        fn what_is_split_off_and_what_is_left_are_all_there_was(
            lengths in vec(0..50_u32, 0..20),
            front in 0..200_u64,
        ) {
            let bytes = |segments: &[Segment]| -> Vec<u64> {
                segments.iter().flat_map(|&(at, length)| at.0..at.0 + u64::from(length)).collect()
            };
            let mut segments: Vec<Segment> = (0..)
                .zip(&lengths)
                .map(|(index, &length)| (GuestAddress(index * 0x100), length))
                .collect();
            let all = bytes(&segments);
            match split_front(&mut segments, front) {
                Some(taken) => {
                    prop_assert_eq!(length(&taken), front);
                    let last = split_last(&mut segments).map(|at| at.0);
                    prop_assert_eq!([bytes(&taken), bytes(&segments), last.into_iter().collect()].concat(), all);
                }
                None => prop_assert!((all.len() as u64) < front),
            }
        }

        /// What is not refused lies in the disk.
        #[test]
        fn no_header_reaches_beyond_the_disk(
            header in any::<[u8; 16]>(),
            kind in 0..16_u32,
            sector in prop_oneof![0..16_u64, any::<u64>()],
            readable in prop_oneof![(0..16_u64).prop_map(|n| n * SECTOR), any::<u64>()],
            writable in prop_oneof![(0..16_u64).prop_map(|n| n * SECTOR), any::<u64>()],
        ) {
            let mut header = header;
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            let (offset, length) = match DISK.decode(header, readable, writable) {
                Ok(Request::Read { offset }) => (offset, writable),
                Ok(Request::Write { offset }) => (offset, readable),
                _ => (0, 0),
            };
            prop_assert!(offset.checked_add(length).is_some_and(|end| end <= DISK.capacity));
        }
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
