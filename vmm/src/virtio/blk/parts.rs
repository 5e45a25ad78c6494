//! What a chain of a disk consists of (virtio 1.3 §5.2.6). The driver cuts it into descriptors where
//! it likes (§2.7.4.1).

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::request::{HEADER_LEN, Segment, split_front, split_last};
use crate::memory::Ram;
use crate::virtio::queue::{Chain, QueueError};

/// A chain, taken apart: header, data in both directions, and where the status goes.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) header: [u8; HEADER_LEN],
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
    pub(super) status_at: GuestAddress,
    /// How many it was cut into, empty ones included, which the segments do not have.
    pub(super) descriptors: u64,
}

impl Parts {
    /// Takes a chain apart.
    ///
    /// # Errors
    /// When there is no room for header and status, or it is not memory.
    pub(super) fn take(index: usize, ram: &Ram, chain: Chain<'_>) -> Result<Self, QueueError> {
        let broken = |what| QueueError::Chain { index, what };
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        let mut descriptors = 0;
        for descriptor in chain {
            descriptors += 1;
            // Nothing that anybody has to look at again.
            if descriptor.len() == 0 {
                continue;
            }
            let segments = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            segments.push((descriptor.addr(), descriptor.len()));
        }
        let status_at = split_last(&mut writable).ok_or(broken("no room for the status"))?;
        if !ram.address_in_range(status_at) {
            return Err(broken("status outside of memory"));
        }
        let front =
            split_front(&mut readable, HEADER_LEN as u64).ok_or(broken("no room for a header"))?;
        let mut header = [0; HEADER_LEN];
        copy_from(ram, &front, &mut header).ok_or(broken("header outside of memory"))?;
        Ok(Self {
            header,
            readable,
            writable,
            status_at,
            descriptors,
        })
    }
}

/// Copies the segments, which together are as long as `data`; `None` when one is not memory.
pub(super) fn copy_from(ram: &Ram, segments: &[Segment], data: &mut [u8]) -> Option<()> {
    let mut filled = 0;
    for &(address, length) in segments {
        let part = data.get_mut(filled..filled + length as usize)?;
        ram.read_slice(part, address).ok()?;
        filled += length as usize;
    }
    Some(())
}

/// Fills the segments, as far as `data` reaches.
pub(super) fn copy_to(ram: &Ram, segments: &[Segment], data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    for &(address, length) in segments {
        let (now, later) = rest.split_at((length as usize).min(rest.len()));
        ram.write_slice(now, address).map_err(io::Error::other)?;
        rest = later;
    }
    Ok(())
}
