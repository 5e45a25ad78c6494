//! Block requests (virtio 1.3 §5.2.6): decoding, without any input or output.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

/// Bytes of a sector (§5.2.6: "all in 512-byte units").
pub(super) const SECTOR: u64 = 512;

/// Length of the header: type, reserved, sector.
pub(super) const HEADER_LEN: usize = 16;

/// Bytes of the answer to [`Request::Identify`].
pub(super) const ID_LEN: u32 = 20;

/// Length of a range of [`Request::Discard`] or [`Request::WriteZeroes`]: sector, number, flags.
const RANGE_LEN: u64 = 16;

/// Most ranges of one such request.
pub(super) const RANGES_MAX: u32 = 32;

/// Most sectors of one range: 1 GiB.
pub(super) const RANGE_MAX: u32 = 1 << 21;

/// A piece of guest memory: where, and how many bytes.
pub(super) type Segment = (GuestAddress, u32);

/// What the driver wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Read from byte `offset` of the disk into the writable segments.
    Read {
        /// Byte offset in the disk; the whole range lies in it.
        offset: u64,
    },
    /// Write the readable segments to byte `offset` of the disk.
    Write {
        /// Byte offset in the disk; the whole range lies in it.
        offset: u64,
    },
    /// Make earlier writes durable.
    Flush,
    /// Tell the disk's serial number.
    Identify,
    /// Forget what is in the ranges that the readable segments name.
    Discard,
    /// Make the ranges that the readable segments name read as zeroes.
    WriteZeroes,
}

/// A part of the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// Byte offset in the disk; the whole range lies in it.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Whether the space may be given back to the host.
    pub(super) unmap: bool,
}

/// Why a request is refused with a status; the driver goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
    /// `VIRTIO_BLK_S_IOERR`: outside of the disk, no whole sectors, or a write to a read-only disk.
    IoError,
}

/// What a request is measured against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    /// Bytes, in whole sectors.
    pub(super) capacity: u64,
    /// Whether it may not be written.
    pub(super) read_only: bool,
    /// Most bytes of data in a request.
    pub(super) request_max: u64,
}

impl Disk {
    /// Decodes a header. `readable` and `writable` are the bytes of data in either direction,
    /// without header and status.
    ///
    /// # Errors
    /// The status to answer with.
    pub(super) fn decode(
        &self,
        header: [u8; HEADER_LEN],
        readable: u64,
        writable: u64,
    ) -> Result<Request, Refusal> {
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(sector, writable)?;
                Ok(Request::Read { offset })
            }
            VIRTIO_BLK_T_OUT if self.read_only => Err(Refusal::IoError),
            VIRTIO_BLK_T_OUT => {
                let offset = self.range(sector, readable)?;
                Ok(Request::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID if writable >= u64::from(ID_LEN) => Ok(Request::Identify),
            VIRTIO_BLK_T_GET_ID => Err(Refusal::IoError),
            // "All writes" to a read-only device fail (§5.2.6.2).
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.read_only || !is_ranges(readable) =>
            {
                Err(Refusal::IoError)
            }
            VIRTIO_BLK_T_DISCARD => Ok(Request::Discard),
            VIRTIO_BLK_T_WRITE_ZEROES => Ok(Request::WriteZeroes),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Decodes the ranges of a [`Request::Discard`] or [`Request::WriteZeroes`].
    ///
    /// # Errors
    /// The status to answer with: reserved flags, and "unmap" for what is discarded anyway, are not
    /// supported (§5.2.6.2).
    pub(super) fn ranges(&self, request: &Request, data: &[u8]) -> Result<Vec<Range>, Refusal> {
        let known = match request {
            Request::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        let (ranges, _) = data.as_chunks();
        (ranges.iter())
            .map(|&[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]| {
                let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                let sectors = u32::from_le_bytes([i, j, k, l]);
                let flags = u32::from_le_bytes([m, n, o, p]);
                if flags & !known != 0 {
                    return Err(Refusal::Unsupported);
                }
                let length = u64::from(sectors) * SECTOR;
                let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
                let end = offset.checked_add(length).ok_or(Refusal::IoError)?;
                if end > self.capacity || sectors > RANGE_MAX {
                    return Err(Refusal::IoError);
                }
                let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                Ok(Range {
                    offset,
                    length,
                    unmap,
                })
            })
            .collect()
    }

    /// The byte offset of `sector`, if `length` bytes from there on are whole sectors of the disk
    /// and no more than a request may have.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::IoError)?;
        let end = offset.checked_add(length).ok_or(Refusal::IoError)?;
        let fits = end <= self.capacity && length <= self.request_max;
        if fits && length.is_multiple_of(SECTOR) {
            Ok(offset)
        } else {
            Err(Refusal::IoError)
        }
    }
}

/// Whether so many bytes are ranges, at least one and no more than there may be.
fn is_ranges(length: u64) -> bool {
    length > 0 && length.is_multiple_of(RANGE_LEN) && length / RANGE_LEN <= u64::from(RANGES_MAX)
}

/// Takes `length` bytes off the front of `segments`; `None` when there are fewer.
#[must_use]
pub(super) fn split_front(segments: &mut Vec<Segment>, mut length: u64) -> Option<Vec<Segment>> {
    let mut front = Vec::new();
    while length > 0 {
        let &(address, available) = segments.first()?;
        let taken = u32::try_from(length).unwrap_or(u32::MAX).min(available);
        front.push((address, taken));
        length -= u64::from(taken);
        if taken == available {
            segments.remove(0);
        } else {
            let rest = address.0.checked_add(taken.into())?;
            segments[0] = (GuestAddress(rest), available - taken);
        }
    }
    Some(front)
}

/// Takes the last byte off `segments`; `None` when there is none.
#[must_use]
pub(super) fn split_last(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    while segments.last()?.1 == 0 {
        segments.pop();
    }
    let (address, length) = segments.last_mut()?;
    *length -= 1;
    Some(GuestAddress(address.0.checked_add((*length).into())?))
}

/// Bytes in `segments`.
#[must_use]
pub(super) fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|&(_, length)| u64::from(length)).sum()
}

#[cfg(test)]
mod tests;
