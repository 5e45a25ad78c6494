//! Chains that are cut as no driver would.

use vm_memory::Bytes;

use super::*;

const READABLE: u16 = 0;
const WRITABLE: u16 = 2;

#[test]
fn empty_descriptors_are_no_part_of_a_request() {
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let header = header(OUT, 2);
    let [empty, empty_writable] = [READABLE, WRITABLE].map(|flags| Buffer::Raw(0, 0, flags));
    driver.add(
        0,
        &[
            empty,
            Buffer::Readable(&header[..5]),
            empty,
            Buffer::Readable(&header[5..]),
            empty,
            Buffer::Readable(&[7; 512]),
            empty,
            empty_writable,
            Buffer::Writable(1),
            empty_writable,
        ],
    );
    let ram = driver.ram.clone();
    let chain = driver.queues().pop(0).unwrap().unwrap();
    let parts = Parts::take(0, &ram, chain).unwrap();
    assert_eq!(parts.header, *header);
    assert_eq!(parts.descriptors, 10);
    assert_eq!((parts.readable.len(), length(&parts.readable)), (1, 512));
    assert_eq!(length(&parts.writable), 0);
}

/// Chains that ask for little, and take long to look at.
#[test]
fn a_turn_ends_early_when_chains_have_many_descriptors() {
    const TABLE: u64 = 0x800_0000;
    const HEADER: u64 = 0x900_0000;
    const LENGTH: u16 = 1024;
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let (mut blk, _file) = disk(false);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let header = header(99, 0);
    (driver.ram.write_slice(&header, GuestAddress(HEADER))).unwrap();
    for i in 0..LENGTH {
        let (length, flags) = match i {
            0 => (16, NEXT),
            _ if i + 1 == LENGTH => (1, WRITABLE),
            _ => (0_u32, NEXT),
        };
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&HEADER.to_le_bytes());
        descriptor[8..12].copy_from_slice(&length.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&(i + 1).to_le_bytes());
        let at = GuestAddress(TABLE + 16 * u64::from(i));
        driver.ram.write_slice(&descriptor, at).unwrap();
    }
    for _ in 0..QUEUE_SIZE {
        let table = Buffer::Raw(TABLE, 16 * u32::from(LENGTH), INDIRECT);
        driver.add(0, &[table]);
    }
    let [_, _, ring] = driver.rings(0);
    for turn in 1..=8 {
        blk.serve(0, &mut driver.queues()).unwrap();
        let used: u16 = driver.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        assert_eq!(used, turn * QUEUE_SIZE / 8);
        assert_eq!(driver.kicked(0), used < QUEUE_SIZE);
    }
}
