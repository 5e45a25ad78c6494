//! Headers, ranges and segments, on bytes alone.

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
