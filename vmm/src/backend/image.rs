//! A disk image: a raw file or block device, read into and written from guest memory in place.
#![expect(
    unsafe_code,
    reason = "preadv and pwritev on guest memory, which no slice may cover"
)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// Most pieces that one system call takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// A file of a size that was looked at once.
#[derive(Debug)]
pub struct Image {
    file: File,
    len: u64,
}

impl Image {
    /// Takes a regular file or a block device.
    ///
    /// # Errors
    /// When it cannot seek to its end.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(file);
        // A block device's size is where its end is; stat(2) says 0.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, len })
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
