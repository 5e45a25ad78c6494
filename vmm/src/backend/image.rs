//! A disk image: a raw file or block device, read into and written from guest memory in place.
#![expect(
    unsafe_code,
    reason = "preadv and pwritev on guest memory, which no slice may cover, and two ioctls"
)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{FallocateFlags, OFlags, fallocate, ioctl_blksszget};
use rustix::io::Errno;
use rustix::ioctl;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memory::Ram;

/// Most pieces that one system call takes (`IOV_MAX`).
const IOV_MAX: usize = 1024;

/// `BLKDISCARD` of linux/fs.h: offset and length in bytes.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// `BLKGETSIZE64` of linux/fs.h: the number of bytes.
const BLKGETSIZE64: ioctl::Opcode = ioctl::opcode::read::<usize>(0x12, 114);

/// Zeroes to write where the file system has no quicker way.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A file of a size that was looked at once.
#[derive(Debug)]
pub struct Image {
    file: File,
    len: u64,
    read_only: bool,
    /// Bytes of the sectors in which a block device works; of a file there are none.
    device_sector: Option<u32>,
}

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A directory, a pipe, a terminal, …
    #[error("it is neither a regular file nor a block device")]
    Kind,
    /// Something that has no size as a block device has one.
    #[error("it is no block device")]
    NoBlockDevice,
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
        let device_sector = (kind.is_block_device())
            .then(|| ioctl_blksszget(&file).map_err(io::Error::from))
            .transpose()?;
        Ok(Self {
            file,
            len,
            read_only,
            device_sector,
        })
    }

    /// Takes a block device. It asks the kernel for nothing but two sizes, which only a block device
    /// has an answer to; one that is open for reading alone fails every write.
    ///
    /// # Errors
    /// When it is something else.
    pub fn of_block_device(file: OwnedFd, read_only: bool) -> Result<Self, ImageError> {
        let file = File::from(file);
        let len = blk_size(&file).map_err(|errno| match errno {
            Errno::NOTTY | Errno::INVAL => ImageError::NoBlockDevice,
            errno => ImageError::Look(errno.into()),
        })?;
        let device_sector = Some(ioctl_blksszget(&file).map_err(io::Error::from)?);
        Ok(Self {
            file,
            len,
            read_only,
            device_sector,
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

    /// Bytes of its sectors, where they are not just any: a block device discards and zeroes whole ones alone.
    #[must_use]
    pub fn device_sector(&self) -> Option<u32> {
        self.device_sector
    }

    /// The same image as one of a block device with sectors of so many bytes.
    #[cfg(test)]
    pub(crate) fn of_sectors(self, bytes: u32) -> Self {
        Self {
            device_sector: Some(bytes),
            ..self
        }
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
    /// file's to say. A file that cannot keeps it, since it is only a hint; so does a block device whose sectors
    /// it cuts.
    ///
    /// # Errors
    /// When the file fails.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let done = if self.device_sector.is_some() {
            blk_discard(&self.file, offset, len)
        } else {
            self.punch(offset, len)
        };
        match done {
            Err(errno) if is_impossible(errno) => Ok(()),
            done => Ok(done?),
        }
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
            Err(errno) if is_impossible(errno) => self.write_each_zero(offset, len),
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

/// Whether there is no such way, or none for this range as it cuts a sector of a block device.
fn is_impossible(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::INVAL)
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

fn blk_size(file: &File) -> rustix::io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one 64-bit number, as `u64` is.
    let request = unsafe { ioctl::Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: the descriptor is open. What is no block device does not know the request, of which type and
    // size are part.
    unsafe { ioctl::ioctl(file, request) }
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
mod tests;
