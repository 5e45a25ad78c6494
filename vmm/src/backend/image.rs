//! A disk image: a raw file or block device, read into and written from guest memory in place.
#![expect(
    unsafe_code,
    reason = "preadv and pwritev on guest memory, which no slice may cover, and an ioctl"
)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// Most pieces that one system call takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// `BLKDISCARD` of linux/fs.h: offset and length in bytes.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Zeroes to write where the file system has no quicker way.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A file of a size that was looked at once.
#[derive(Debug)]
pub struct Image {
    file: File,
    len: u64,
    read_only: bool,
    block_device: bool,
}

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory, a pipe, a terminal, …
    #[error("it is neither a regular file nor a block device")]
    Kind,
    /// A disk the guest may write, but the descriptor may not.
    #[error("its descriptor is open for reading alone, and the disk is not read-only")]
    NotWritable,
    /// The file cannot be looked at.
    #[error("look at its size and mode")]
    Look(#[from] io::Error),
}

impl Image {
    /// Takes a regular file or a block device. `read_only` holds whatever the descriptor allows.
    ///
    /// # Errors
    /// When it is something else, or may not be written although it should.
    pub fn new(file: OwnedFd, read_only: bool) -> Result<Self, ImageError> {
        let mut file = File::from(file);
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind);
        }
        let mode = rustix::fs::fcntl_getfl(&file).map_err(io::Error::from)?;
        if !read_only && mode & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(ImageError::NotWritable);
        }
        // A block device's size is where its end is; stat(2) says 0.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            len,
            read_only,
            block_device: kind.is_block_device(),
        })
    }

    /// Whether nobody may write it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills all of `segments` from `offset` on.
    ///
    /// # Errors
    /// When a segment is not memory, when the file fails or ends before they are full.
    pub fn read_at(
        &self,
        ram: &Ram,
        segments: &[(GuestAddress, u32)],
        offset: u64,
    ) -> io::Result<()> {
        transfer(self.file.as_raw_fd(), ram, segments, offset, libc::preadv)
    }

    /// The same, but only if nothing has to be waited for (`RWF_NOWAIT`): tells whether it was. If
    /// not, some of the segments may be full.
    ///
    /// # Errors
    /// When a segment is not memory. A file that fails is one to wait for: whoever does hears of it.
    pub fn read_cached_at(
        &self,
        ram: &Ram,
        segments: &[(GuestAddress, u32)],
        offset: u64,
    ) -> io::Result<bool> {
        let mut pieces = pieces(ram, segments)?;
        let fd = self.file.as_raw_fd();
        Ok(transfer_pieces(fd, &mut pieces, offset, preadv_nowait).is_ok())
    }

    /// Writes all of `segments` from `offset` on.
    ///
    /// # Errors
    /// When a segment is not memory, or the file fails.
    pub fn write_at(
        &self,
        ram: &Ram,
        segments: &[(GuestAddress, u32)],
        offset: u64,
    ) -> io::Result<()> {
        transfer(self.file.as_raw_fd(), ram, segments, offset, libc::pwritev)
    }

    /// Gives the space of a range back to whoever has it; what is read there afterwards is the
    /// file's to say. A file that cannot keeps it, since it is only a hint.
    ///
    /// # Errors
    /// When the file fails.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = if self.block_device {
            blk_discard(&self.file, offset, len)
        } else {
            self.punch(offset, len)
        };
        if matches!(done, Err(Errno::OPNOTSUPP)) {
            return Ok(());
        }
        Ok(done?)
    }

    /// Makes a range read as zeroes, and gives its space back if it is to be `unmap`ped and that can
    /// be done. On a block device the kernel does what `BLKZEROOUT` would.
    ///
    /// # Errors
    /// When the file fails.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mut done = Err(Errno::OPNOTSUPP);
        if unmap {
            done = self.punch(offset, len);
        }
        if done.is_err() {
            done = fallocate(
                &self.file,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                offset,
                len,
            );
        }
        match done {
            Err(Errno::OPNOTSUPP) => self.write_each_zero(offset, len),
            done => Ok(done?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> rustix::io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, hole, offset, len)
    }

    fn write_each_zero(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        while offset < end {
            let count = ZEROES
                .len()
                .min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.file.write_all_at(&ZEROES[..count], offset)?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

type Vectored =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> isize;

/// Calls `vectored` until it has done all of `segments`.
fn transfer(
    fd: RawFd,
    ram: &Ram,
    segments: &[(GuestAddress, u32)],
    offset: u64,
    vectored: Vectored,
) -> io::Result<()> {
    transfer_pieces(fd, &mut pieces(ram, segments)?, offset, vectored)
}

/// The same, with the host's addresses of guest memory that stays mapped meanwhile.
fn transfer_pieces(
    fd: RawFd,
    mut pieces: &mut [libc::iovec],
    offset: u64,
    vectored: Vectored,
) -> io::Result<()> {
    let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
    while !pieces.is_empty() {
        let count = pieces.len().min(IOV_MAX);
        let count = libc::c_int::try_from(count).expect("at most IOV_MAX");
        // SAFETY: the first `count` pieces exist and each is a range of guest memory, which stays
        // mapped: the callers borrow it. The kernel may change it, and so may the guest at any
        // time: no Rust reference covers it.
        let done = unsafe { vectored(fd, pieces.as_ptr(), count, offset) };
        match usize::try_from(done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => {
                offset += done.cast_signed() as i64;
                pieces = advance(pieces, done);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// As `preadv(2)`, of what the page cache has.
unsafe extern "C" fn preadv_nowait(
    fd: libc::c_int,
    pieces: *const libc::iovec,
    count: libc::c_int,
    offset: libc::off_t,
) -> isize {
    // SAFETY: as for preadv(2), whose arguments they are.
    unsafe { libc::preadv2(fd, pieces, count, offset, libc::RWF_NOWAIT) }
}

fn blk_discard(file: &File, offset: u64, len: u64) -> rustix::io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two 64-bit numbers, which are there; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, &raw const range) };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// The host's addresses of `segments`, which may cross regions.
fn pieces(ram: &Ram, segments: &[(GuestAddress, u32)]) -> io::Result<Vec<libc::iovec>> {
    let mut pieces = Vec::with_capacity(segments.len());
    for &(address, length) in segments {
        for slice in GuestMemoryBackend::get_slices(ram, address, length as usize) {
            let slice = slice.map_err(io::Error::other)?;
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            pieces.push(libc::iovec {
                iov_base,
                iov_len: slice.len(),
            });
        }
    }
    Ok(pieces)
}

/// Drops the first `done` bytes.
fn advance(mut pieces: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = pieces.first_mut() {
        if done < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
            break;
        }
        done -= first.iov_len;
        pieces = &mut pieces[1..];
    }
    pieces
}

#[cfg(test)]
mod tests {
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
}
