//! A disk image: a raw file or block device, read into and written from guest memory in place.
#![expect(
    unsafe_code,
    reason = "preadv and pwritev on guest memory, which no slice may cover"
)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use rustix::fs::OFlags;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// Most pieces that one system call takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// A file of a size that was looked at once.
#[derive(Debug)]
pub struct Image {
    file: File,
    len: u64,
    read_only: bool,
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
    let mut pieces = pieces(ram, segments)?;
    let mut pieces = pieces.as_mut_slice();
    let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
    while !pieces.is_empty() {
        let count = pieces.len().min(IOV_MAX);
        let count = libc::c_int::try_from(count).expect("at most IOV_MAX");
        // SAFETY: the first `count` pieces exist and each is a range of guest memory, which stays
        // mapped while `ram` is borrowed. The kernel may change it, and so may the guest at any
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
