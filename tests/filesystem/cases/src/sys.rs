//! Memory maps and file handles behind safe signatures.
#![expect(unsafe_code, reason = "a mapping and open_by_handle_at are raw")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// A file's first bytes in memory. Touching what the file no longer has ends the process.
pub(crate) struct Map {
    start: *mut u8,
    length: usize,
}

impl Map {
    /// Maps for reading and writing; `MapFlags::SHARED` or `PRIVATE`.
    pub(crate) fn new(file: impl AsFd, length: usize, flags: MapFlags) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that no other mapping is replaced.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, flags, file, 0) }?;
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length, "within the mapping");
        (offset..offset + length)
            // SAFETY: within the mapping, which lives as long as `self`; volatile, since others write it.
            .map(|at| unsafe { self.start.wrapping_add(at).read_volatile() })
            .collect()
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length, "within the mapping");
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: as in `read`; nobody holds a reference to these bytes.
            unsafe { self.start.wrapping_add(offset + at).write_volatile(*byte) };
        }
    }

    pub(crate) fn sync(&self) -> Result<()> {
        // SAFETY: the whole mapping, which lives as long as `self`.
        unsafe { msync(self.start.cast(), self.length, MsyncFlags::SYNC) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping but `self`, which ends.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}

/// A file handle, as name_to_handle_at(2) fills it in.
#[repr(C)]
pub(crate) struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; 128],
}

pub(crate) fn handle_of(path: &CStr) -> Result<Handle> {
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount = 0;
    let start = (&raw mut handle).cast();
    // SAFETY: `handle` has the layout of `struct file_handle` and room for `bytes` bytes.
    let done =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), start, &raw mut mount, 0) };
    if done == 0 { Ok(handle) } else { Err(errno()) }
}

pub(crate) fn open_handle(mount: BorrowedFd<'_>, handle: &mut Handle) -> Result<OwnedFd> {
    let start = (&raw mut *handle).cast();
    // SAFETY: `handle` has the layout of `struct file_handle`, filled in by the kernel.
    let file = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), start, libc::O_RDONLY) };
    if file < 0 {
        return Err(errno());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).expect("a call has failed")
}
