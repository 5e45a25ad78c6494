//! The guest's kernel and initial RAM file system, from files into memory.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use crate::arch;
use crate::memory::Ram;

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not an uncompressed kernel.
    #[error("load the kernel; is it an uncompressed ELF (vmlinux)?")]
    Kernel(#[source] linux_loader::loader::Error),
    /// A kernel without a PVH note.
    #[error("the kernel has no PVH entry; build it with CONFIG_PVH")]
    NoPvhEntry,
    /// No room in the guest's memory.
    #[error("{0} bytes of initial RAM file system do not fit in the guest's memory")]
    InitrdTooLarge(u64),
    /// The file cannot be read.
    #[error("read the initial RAM file system")]
    InitrdRead(#[source] std::io::Error),
    /// The file cannot be copied into memory.
    #[error("copy the initial RAM file system into the guest's memory")]
    InitrdCopy(#[source] vm_memory::GuestMemoryError),
}

/// Loads an ELF kernel where its program headers say; returns its PVH entry.
///
/// # Errors
/// When it is no such kernel, or larger than the guest's memory.
pub fn kernel(ram: &Ram, file: OwnedFd) -> Result<GuestAddress, LoadError> {
    let mut file = File::from(file);
    let loaded = Elf::load(ram, None, &mut file, None).map_err(LoadError::Kernel)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry),
        _ => Err(LoadError::NoPvhEntry),
    }
}

/// Loads an initial RAM file system; returns its address and length in bytes.
///
/// # Errors
/// When it cannot be read or does not fit.
pub fn initrd(ram: &Ram, file: OwnedFd) -> Result<(GuestAddress, u64), LoadError> {
    let mut file = File::from(file);
    let length = file.seek(SeekFrom::End(0)).map_err(LoadError::InitrdRead)?;
    file.rewind().map_err(LoadError::InitrdRead)?;
    let too_large = LoadError::InitrdTooLarge(length);
    let Some(address) = arch::initrd_address(ram, length) else {
        return Err(too_large);
    };
    let Ok(count) = usize::try_from(length) else {
        return Err(too_large);
    };
    ram.read_exact_volatile_from(address, &mut file, count)
        .map_err(LoadError::InitrdCopy)?;
    Ok((address, length))
}
