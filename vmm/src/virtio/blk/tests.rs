//! Disks between a fake driver and a file.

mod chains;
mod limits;
mod slow;

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestAddress;

use super::request::SECTOR;
use super::*;
use crate::jail::Filters;
use crate::virtio::queue::testing::{Buffer, Driver};

const IN: u32 = 0;
const OUT: u32 = 1;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [
        kind.to_le_bytes().as_slice(),
        &[0; 4],
        &sector.to_le_bytes(),
    ]
    .concat()
}

fn disk(read_only: bool) -> (Blk, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * SECTOR).unwrap();
    let image = Image::new(file.try_clone().unwrap().into(), read_only).unwrap();
    (blk_of(image), file)
}

fn blk_of(image: Image) -> Blk {
    Blk::new(
        image,
        "kelp",
        1,
        RateLimiter::default(),
        Filters::unjailed(),
    )
    .unwrap()
}

/// As the driver reads the configuration space.
fn sectors(blk: &Blk) -> u64 {
    let mut sectors = [0; 8];
    blk.read_config(0, &mut sectors);
    u64::from_le_bytes(sectors)
}

/// Sends one chain; returns what was written into it, the status last.
fn send(blk: &mut Blk, buffers: &[Buffer<'_>]) -> Vec<u8> {
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    driver.add(0, buffers);
    blk.serve(0, &mut driver.queues()).unwrap();
    settle(blk, &mut driver);
    driver.used(0).unwrap().written
}

/// Whether the event loop has something to do within `patience`.
fn ready(blk: &Blk, patience: Duration) -> bool {
    let backend = blk.backend().unwrap();
    let patience = Timespec::try_from(patience).unwrap();
    poll(&mut [PollFd::new(&backend, PollFlags::IN)], Some(&patience)).unwrap() > 0
}

fn in_flight(blk: &Blk) -> usize {
    let all = blk.lanes.iter().flat_map(|lane| &lane.in_flight);
    all.filter(|entry| entry.is_some()).count()
}

/// Lets the event loop run until the workers have nothing to do.
fn settle(blk: &mut Blk, driver: &mut Driver) {
    while in_flight(blk) > 0 {
        assert!(ready(blk, Duration::from_secs(10)));
        blk.serve_backend(&mut driver.queues()).unwrap();
    }
}

#[test]
fn what_was_written_is_read_and_is_in_the_file() {
    let (mut blk, file) = disk(false);
    let data = [7; 1024];
    let written = send(
        &mut blk,
        &[
            Buffer::Readable(&header(OUT, 2)),
            Buffer::Readable(&data),
            Buffer::Writable(1),
        ],
    );
    assert_eq!(written, [0]);

    let read = send(
        &mut blk,
        &[
            Buffer::Readable(&header(IN, 1)),
            Buffer::Writable(600),
            Buffer::Writable(424),
            Buffer::Writable(1),
        ],
    );
    assert_eq!(read.len(), 1025);
    assert!(read[..512].iter().all(|&byte| byte == 0));
    assert!(read[512..1024].iter().all(|&byte| byte == 7));
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * SECTOR).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_disk_by_hand_does_what_it_is_asked_for_when_it_is_told_to() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * SECTOR).unwrap();
    let mut blk = Blk::by_hand(1).unwrap();
    blk.insert(Image::new(file.into(), false).unwrap(), "kelp");
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let header = header(OUT, 0);
    driver.add(
        0,
        &[
            Buffer::Readable(&header),
            Buffer::Readable(&[7; 512]),
            Buffer::Writable(1),
        ],
    );
    blk.serve(0, &mut driver.queues()).unwrap();
    assert!(!ready(&blk, Duration::ZERO));
    assert!(blk.carry_out(0) && !blk.carry_out(0) && !blk.carry_out(1));
    assert!(ready(&blk, Duration::ZERO));
    blk.serve_backend(&mut driver.queues()).unwrap();
    assert_eq!(driver.used(0).unwrap().written, [0]);
}

#[test]
fn the_status_may_share_a_descriptor_with_data_and_the_header_may_be_cut() {
    let (mut blk, _file) = disk(false);
    let header = header(IN, 0);
    let read = send(
        &mut blk,
        &[
            Buffer::Readable(&header[..5]),
            Buffer::Readable(&header[5..]),
            Buffer::Writable(513),
        ],
    );
    assert_eq!((read.len(), read[512]), (513, 0));
}

#[test]
fn a_write_to_a_read_only_disk_fails_and_changes_nothing() {
    let (mut blk, file) = disk(true);
    let written = send(
        &mut blk,
        &[
            Buffer::Readable(&header(OUT, 0)),
            Buffer::Readable(&[7; 512]),
            Buffer::Writable(1),
        ],
    );
    assert_eq!(written, [1]);
    let mut byte = [9];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [0]);
}

/// A guest that writes the header of an image with a backing file into its raw disk reads its
/// own header back, now and after the next boot, and not that file.
#[test]
fn cve_2026_27211_a_disk_that_looks_like_qcow2_is_its_bytes() {
    let (mut blk, file) = disk(false);
    let mut qcow2 = [0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    // The backing file's name: where, and its length.
    qcow2[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 11]);
    qcow2[104..115].copy_from_slice(b"/etc/shadow");
    let write = [
        Buffer::Readable(&header(OUT, 0)),
        Buffer::Readable(&qcow2),
        Buffer::Writable(1),
    ];
    assert_eq!(send(&mut blk, &write), [0]);
    let image = Image::new(file.into(), false).unwrap();
    let mut next_boot = blk_of(image);
    for blk in [&mut blk, &mut next_boot] {
        assert_eq!(sectors(blk), 8);
        let read = [
            Buffer::Readable(&header(IN, 0)),
            Buffer::Writable(512),
            Buffer::Writable(1),
        ];
        assert_eq!(send(blk, &read)[..512], qcow2);
    }
}

#[test]
fn a_file_that_shrank_under_the_disk_gives_an_error_status() {
    let (mut blk, file) = disk(false);
    file.set_len(SECTOR).unwrap();
    let read = send(
        &mut blk,
        &[
            Buffer::Readable(&header(IN, 4)),
            Buffer::Writable(512),
            Buffer::Writable(1),
        ],
    );
    // Only the status counts as written.
    assert_eq!(read.len(), 1);
}

#[test]
fn the_serial_number_is_padded_to_20_bytes() {
    let (mut blk, _file) = disk(false);
    let id = send(
        &mut blk,
        &[
            Buffer::Readable(&header(8, 0)),
            Buffer::Writable(20),
            Buffer::Writable(1),
        ],
    );
    assert_eq!(&id[..6], b"kelp\0\0");
    assert_eq!(id.len(), 21);
}

#[test]
fn chains_without_header_or_status_or_outside_of_memory_break_the_queue() {
    let (header, flush) = (header(IN, 0), header(4, 0));
    for buffers in [
        [Buffer::Readable(&header), Buffer::Readable(b"no status")],
        [Buffer::Readable(b"short"), Buffer::Writable(513)],
        [Buffer::Raw(u64::MAX - 8, 16, 1), Buffer::Writable(513)],
        [
            Buffer::Readable(&header),
            Buffer::Raw(u64::MAX - 600, 513, 2),
        ],
        // Nobody waits for the file to find that out.
        [Buffer::Readable(&flush), Buffer::Raw(1 << 40, 1, 2)],
    ] {
        let (mut blk, _file) = disk(false);
        let mut driver = Driver::new(&[QUEUE_SIZE]);
        driver.add(0, &buffers);
        let served = blk.serve(0, &mut driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{buffers:?}");
        assert_eq!(in_flight(&blk), 0, "{buffers:?}");
    }
}

#[test]
fn the_configuration_space_tells_capacity_and_bounds() {
    let (blk, _file) = disk(false);
    let mut config = [0; 16];
    blk.read_config(0, &mut config);
    assert_eq!(config[..8], 8_u64.to_le_bytes());
    assert_eq!(config[8..12], SIZE_MAX.to_le_bytes());
    assert_eq!(config[12..16], SEG_MAX.to_le_bytes());
}

/// §5.2.5: "If the VIRTIO_BLK_F_BLK_SIZE feature is negotiated, blk_size can be read to determine the optimal sector
/// size for the driver to use."
#[test]
fn a_disk_has_the_sectors_of_the_hosts_block_device() {
    for (sector, alignment) in [(512, 1), (4096, 8)] {
        let file = tempfile::tempfile().unwrap();
        let image = Image::new(file.into(), false).unwrap();
        let blk = blk_of(image.of_sectors(sector));
        assert!(blk.features() & 1 << VIRTIO_BLK_F_BLK_SIZE != 0);
        let word = |at| {
            let mut word = [0; 4];
            blk.read_config(at, &mut word);
            u32::from_le_bytes(word)
        };
        assert_eq!([word(20), word(44)], [sector, alignment]);
    }
}

#[test]
fn only_a_disk_that_may_not_be_written_says_so_and_has_nothing_to_discard() {
    for read_only in [false, true] {
        let offers = |feature: u32| disk(read_only).0.features() & 1 << feature != 0;
        assert_eq!(offers(VIRTIO_BLK_F_RO), read_only);
        assert_eq!(offers(VIRTIO_BLK_F_DISCARD), !read_only);
        assert_eq!(offers(VIRTIO_BLK_F_WRITE_ZEROES), !read_only);
    }
}

#[test]
fn a_turn_ends_and_the_rest_of_the_queue_is_announced_for_the_next() {
    let file = tempfile::tempfile().unwrap();
    let data = vec![7; 2 << 20];
    file.write_all_at(&data, 0).unwrap();
    let image = Image::new(file.into(), true).unwrap();
    let ram = crate::memory::allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
    let cached = (image.read_cached_at(&ram, &[(GuestAddress(0), 512)], 0)).unwrap();
    let mut blk = blk_of(image);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let header = header(IN, 0);
    for _ in 0..3 {
        let mut chain = vec![Buffer::Readable(&header)];
        chain.extend([Buffer::Writable(1 << 18); 8]);
        chain.push(Buffer::Writable(1));
        driver.add(0, &chain);
    }
    blk.serve(0, &mut driver.queues()).unwrap();
    let served = std::iter::from_fn(|| driver.used(0)).count();
    // A file system that cannot tell what is cached leaves every read to the worker, whose turn it
    // is not.
    let expected = if cached { (2, true) } else { (0, false) };
    assert_eq!((served, driver.kicked(0)), expected);
    blk.serve(0, &mut driver.queues()).unwrap();
    settle(&mut blk, &mut driver);
    let rest = std::iter::from_fn(|| driver.used(0)).count();
    assert_eq!((served + rest, driver.kicked(0)), (3, false));
}

fn flush(driver: &mut Driver, queue: usize) -> u16 {
    let header = header(4, 0);
    driver.add(queue, &[Buffer::Readable(&header), Buffer::Writable(1)])
}

#[test]
fn ranges_are_discarded_and_filled_with_zeroes() {
    let (mut blk, file) = disk(false);
    let content = [7; 4096];
    file.write_all_at(&content, 0).unwrap();
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        range
    };
    let mut ask = |kind, ranges: &[u8]| {
        let header = header(kind, 0);
        // Cut where the driver likes.
        let (first, second) = ranges.split_at(5);
        let chain = [&header, first, second].map(Buffer::Readable);
        send(
            &mut blk,
            &[chain.as_slice(), &[Buffer::Writable(1)]].concat(),
        )
    };
    let two = [range(1, 1, 0), range(6, 2, 1)].concat();
    assert_eq!(ask(13, &two), [0]);
    let mut bytes = content;
    file.read_exact_at(&mut bytes, 0).unwrap();
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let expected = if [1, 6, 7].contains(&sector) { 0 } else { 7 };
        assert!(bytes.iter().all(|&byte| byte == expected), "{sector}");
    }
    assert_eq!(ask(11, &range(0, 8, 0)), [0]);
    // Reserved flags, and a range of which a part is outside.
    assert_eq!(ask(11, &range(0, 8, 1)), [2]);
    assert_eq!(ask(13, &range(0, 8, 4)), [2]);
    assert_eq!(ask(13, &range(7, 2, 0)), [1]);
    assert_eq!(ask(13, &[0; 33 * 16]), [1]);
}

/// §5.2.6.2: for a driver that did not accept the flush, what was answered is durable.
#[test]
fn only_a_driver_that_flushes_has_a_cache_that_is_written_back() {
    for (features, through) in [(0, true), (1 << VIRTIO_BLK_F_FLUSH, false)] {
        let (mut blk, _file) = disk(false);
        let mut driver = Driver::new(&[QUEUE_SIZE]);
        blk.activate(features, &mut driver.queues()).unwrap();
        let parts = Parts {
            header: header(OUT, 0).try_into().unwrap(),
            readable: vec![(GuestAddress(0), 512)],
            writable: vec![],
            status_at: GuestAddress(0),
            descriptors: 2,
        };
        let image = blk.image.clone().unwrap();
        let next = blk.file(&image).decide(&driver.ram, parts);
        let Next::Work(Operation::Write { through: is, .. }, _) = next else {
            panic!("a write is work");
        };
        assert_eq!(is, through);
    }
}

#[test]
fn what_passes_through_and_what_fails_is_counted() {
    let (mut blk, _file) = disk(false);
    let data = [7; 1024];
    let write = [
        Buffer::Readable(&header(OUT, 0)),
        Buffer::Readable(&data),
        Buffer::Writable(1),
    ];
    send(&mut blk, &write);
    send(
        &mut blk,
        &[
            Buffer::Readable(&header(IN, 0)),
            Buffer::Writable(512),
            Buffer::Writable(1),
        ],
    );
    send(
        &mut blk,
        &[
            Buffer::Readable(&header(IN, 99)),
            Buffer::Writable(512),
            Buffer::Writable(1),
        ],
    );
    let counted = Traffic {
        to_guest: 512,
        from_guest: 1024,
        errors: 1,
    };
    assert_eq!(blk.traffic(), counted);
}

#[test]
fn a_request_larger_than_the_configuration_space_allows_is_refused() {
    let (_, file) = disk(false);
    file.set_len(REQUEST_MAX * 2).unwrap();
    let mut blk = blk_of(Image::new(file.into(), false).unwrap());
    let header = header(IN, 0);
    // 272 MiB of them, all in one place: a descriptor's length is the driver's word alone.
    let huge = Buffer::Raw(0x1000_0000, 0x0100_0000, 3);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let mut buffers = vec![Buffer::Readable(&header)];
    buffers.extend(std::iter::repeat_n(huge, 17));
    buffers.push(Buffer::Writable(1));
    driver.add(0, &buffers);
    blk.serve(0, &mut driver.queues()).unwrap();
    assert_eq!(driver.used(0).unwrap().written.len(), 1);
}

/// virtio 1.3 §4.2.3.1.1: a driver ignores a device of type 0.
#[test]
fn a_disk_is_no_device_before_its_file_comes_and_after_it_went() {
    let mut blk = Blk::spare(Filters::unjailed()).unwrap();
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    for serial in ["kelp", "a serial of more than twenty bytes"] {
        assert_eq!((blk.id(), sectors(&blk)), (DeviceId::Nothing, 0));
        assert!(blk.activate(0, &mut driver.queues()).is_err());

        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * SECTOR).unwrap();
        blk.insert(Image::new(file.into(), true).unwrap(), serial);
        assert_eq!((blk.id(), sectors(&blk)), (DeviceId::Block, 8));
        assert_ne!(blk.features() & 1 << VIRTIO_BLK_F_RO, 0);
        blk.activate(0, &mut driver.queues()).unwrap();
        let identify = [
            Buffer::Readable(&header(8, 0)),
            Buffer::Writable(20),
            Buffer::Writable(1),
        ];
        let mut expected = serial.as_bytes().to_vec();
        expected.resize(20, 0);
        assert_eq!(send(&mut blk, &identify)[..20], expected);
        blk.eject();
    }
}
