//! Images on temporary files.

use std::io::Write;

use vm_memory::Bytes;

use super::*;
use crate::memory;

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// Two regions side by side, so that a segment may cross from one to the other.
fn ram() -> Ram {
    memory::allocate(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
}

#[test]
fn segments_are_filled_in_their_order_across_regions() {
    let image = Image::new(file(b"0123456789").into(), true).unwrap();
    let ram = ram();
    let segments = [(GuestAddress(0xffe), 4), (GuestAddress(0x10), 3)];
    image.read_at(&ram, &segments, 2).unwrap();
    let mut bytes = [0; 4];
    ram.read_slice(&mut bytes, GuestAddress(0xffe)).unwrap();
    assert_eq!(&bytes, b"2345");
    ram.read_slice(&mut bytes[..3], GuestAddress(0x10)).unwrap();
    assert_eq!(&bytes[..3], b"678");
}

#[test]
fn more_segments_than_a_system_call_takes_are_written() {
    let content = file(b"");
    let image = Image::new(content.try_clone().unwrap().into(), false).unwrap();
    let ram = ram();
    let digits: Vec<u8> = (0..=255).cycle().take(0x800).collect();
    ram.write_slice(&digits, GuestAddress(0)).unwrap();
    let segments: Vec<_> = (0..0x800).map(|at| (GuestAddress(at), 1)).collect();
    assert!(segments.len() > IOV_MAX);
    image.write_at(&ram, &segments, 0).unwrap();
    image.sync().unwrap();

    let mut written = vec![0; 0x800];
    std::os::unix::fs::FileExt::read_exact_at(&content, &mut written, 0).unwrap();
    assert_eq!(written, digits);
}

#[test]
fn what_is_not_there_is_an_error() {
    let image = Image::new(file(b"0123456789").into(), true).unwrap();
    let ram = ram();
    let past_the_end = image.read_at(&ram, &[(GuestAddress(0), 4)], 8);
    assert_eq!(
        past_the_end.unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    for address in [0x1ffe, 0x2000, u64::MAX] {
        let outside = [(GuestAddress(0), 4), (GuestAddress(address), 4)];
        assert!(image.read_at(&ram, &outside, 0).is_err(), "{address:#x}");
    }
    let no_offset = image.read_at(&ram, &[(GuestAddress(0), 4)], u64::MAX);
    assert!(no_offset.is_err());
}

fn allocated(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
}

#[test]
fn discarded_and_unmapped_space_goes_back_to_the_host_and_reads_as_zeroes() {
    for discard in [true, false] {
        let content = file(&[7; 0x1_0000]);
        content.sync_all().unwrap();
        let before = allocated(&content);
        let image = Image::new(content.try_clone().unwrap().into(), false).unwrap();
        if discard {
            image.discard(0x4000, 0x8000).unwrap();
        } else {
            image.write_zeroes(0x4000, 0x8000, true).unwrap();
        }
        assert!(allocated(&content) < before, "{discard}");
        let mut bytes = vec![9; 0x1_0000];
        content.read_exact_at(&mut bytes, 0).unwrap();
        for (index, byte) in bytes.into_iter().enumerate() {
            let expected = if (0x4000..0xc000).contains(&index) {
                0
            } else {
                7
            };
            assert_eq!(byte, expected, "{index:#x}");
        }
    }
}

#[test]
fn zeroes_are_written_where_there_is_no_quicker_way_and_nowhere_else() {
    let whole = 3 * ZEROES.len();
    let content = file(&vec![7; whole]);
    let image = Image::new(content.try_clone().unwrap().into(), false).unwrap();
    image.write_each_zero(512, 2 * ZEROES.len() as u64).unwrap();
    image.write_zeroes(0, 0, false).unwrap();
    image.write_zeroes(whole as u64 - 1024, 512, false).unwrap();
    let mut bytes = vec![9; whole];
    content.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..512].iter().all(|&byte| byte == 7));
    assert!(
        bytes[512..][..2 * ZEROES.len()]
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(bytes[whole - 1024..][..512].iter().all(|&byte| byte == 0));
    assert!(bytes[whole - 512..].iter().all(|&byte| byte == 7));
    assert_eq!(content.metadata().unwrap().len(), whole as u64);
}

#[test]
fn what_is_cached_is_read_without_waiting_and_what_is_not_there_is_left_to_who_waits() {
    let image = Image::new(file(b"0123456789").into(), true).unwrap();
    let ram = ram();
    // A file system may not know RWF_NOWAIT; then it is never "cached".
    if image
        .read_cached_at(&ram, &[(GuestAddress(0), 4)], 2)
        .unwrap()
    {
        assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0)).unwrap(), *b"2345");
    }
    assert!(
        !image
            .read_cached_at(&ram, &[(GuestAddress(0), 4)], 8)
            .unwrap()
    );
    assert!(
        image
            .read_cached_at(&ram, &[(GuestAddress(1 << 40), 4)], 0)
            .is_err()
    );
}

#[test]
fn a_part_that_was_done_is_not_done_again() {
    let piece = |at: usize, iov_len| libc::iovec {
        iov_base: std::ptr::without_provenance_mut(at),
        iov_len,
    };
    let mut pieces = [piece(0x100, 4), piece(0x200, 0), piece(0x300, 8)];
    let rest = advance(&mut pieces, 6);
    assert_eq!(
        (rest.len(), rest[0].iov_base.addr(), rest[0].iov_len),
        (1, 0x302, 6)
    );
    assert!(advance(&mut pieces[2..], 6).is_empty());
}

#[test]
fn a_disk_is_a_regular_file_or_a_block_device() {
    for path in ["/", "/dev/null"] {
        let refused = Image::new(File::open(path).unwrap().into(), true);
        assert!(matches!(refused, Err(ImageError::Kind)), "{path}");
    }
    let (reader, _writer) = io::pipe().unwrap();
    assert!(matches!(
        Image::new(reader.into(), true),
        Err(ImageError::Kind)
    ));
}

#[test]
fn a_disk_that_is_to_be_written_needs_a_descriptor_that_may() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let open = || OwnedFd::from(File::open(named.path()).unwrap());
    assert!(matches!(
        Image::new(open(), false),
        Err(ImageError::NotWritable)
    ));
    assert!(Image::new(open(), true).is_ok());
}

#[test]
fn what_a_device_cannot_do_with_a_range_is_told_from_its_failures() {
    // A block device of 4096-byte sectors says the first of a range of 512.
    assert!(is_impossible(Errno::INVAL) && is_impossible(Errno::OPNOTSUPP));
    assert!(!is_impossible(Errno::IO) && !is_impossible(Errno::NOSPC));
}
