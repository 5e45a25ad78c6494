//! The initial RAM file system: a file, copied into memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Ram;

/// Why it is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// No room in the guest's memory.
    #[error("{0} bytes of initial RAM file system do not fit in the guest's memory")]
    TooLarge(u64),
    /// The file cannot be read.
    #[error("read the initial RAM file system")]
    Read(#[source] io::Error),
    /// The file cannot be copied into memory.
    #[error("copy the initial RAM file system into the guest's memory")]
    Copy(#[source] vm_memory::GuestMemoryError),
}

/// Copies the file to where `place` wants its number of bytes; returns its address and length.
///
/// # Errors
/// When it cannot be read or does not fit.
pub fn load(
    ram: &Ram,
    file: OwnedFd,
    place: impl FnOnce(u64) -> Option<GuestAddress>,
) -> Result<(GuestAddress, u64), InitrdError> {
    let mut file = File::from(file);
    let length = file.seek(SeekFrom::End(0)).map_err(InitrdError::Read)?;
    file.rewind().map_err(InitrdError::Read)?;
    let too_large = || InitrdError::TooLarge(length);
    let address = place(length).ok_or_else(too_large)?;
    let count = usize::try_from(length).map_err(|_| too_large())?;
    ram.read_exact_volatile_from(address, &mut file, count)
        .map_err(InitrdError::Copy)?;
    Ok((address, length))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory;

    fn file(content: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.into()
    }

    fn ram() -> Ram {
        memory::allocate(&[(GuestAddress(0), 0x2000)]).unwrap()
    }

    #[test]
    fn all_of_the_file_is_copied_wherever_its_descriptor_stands() {
        let ram = ram();
        let at = GuestAddress(0x1000);
        let loaded = load(&ram, file(b"070701"), |length| (length == 6).then_some(at));
        assert_eq!(loaded.unwrap(), (at, 6));
        let mut bytes = [0; 6];
        ram.read_slice(&mut bytes, at).unwrap();
        assert_eq!(&bytes, b"070701");
    }

    #[test]
    fn a_file_without_a_place_is_refused() {
        let refused = load(&ram(), file(b"070701"), |_| None);
        assert!(matches!(refused, Err(InitrdError::TooLarge(6))));
        let past_the_end = |_| Some(GuestAddress(0x1ffd));
        let refused = load(&ram(), file(b"070701"), past_the_end);
        assert!(matches!(refused, Err(InitrdError::Copy(_))));
    }
}
