//! What a request is answered, or what has to be done for it first.

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::{Bytes, GuestAddress};

use super::REQUEST_MAX;
use super::config::SECTOR_LEN;
use super::job::Operation;
use super::parts::{Parts, copy_from, copy_to};
use super::request::{Disk, ID_LEN, Refusal, Request, SECTOR, Segment, length, split_front};
use crate::backend::image::Image;
use crate::memory::Ram;
use crate::virtio::device::Traffic;
use crate::virtio::queue::{QueueError, Queues};

/// The status of a request (virtio 1.3 §5.2.6), and how many bytes of data the guest was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    status: u32,
    pub(super) data: u32,
}

/// What becomes of a request.
pub(super) enum Next {
    /// It is answered.
    Answer(Answer),
    /// The worker has to do something with the segments.
    Work(Operation, Vec<Segment>),
}

impl Next {
    /// Bytes of zeroes that it writes, of which the chain has none: up to 32 GiB, where the file has no quicker way.
    pub(super) fn zeroes(&self) -> u64 {
        match self {
            Self::Work(Operation::WriteZeroes(ranges), _) => {
                ranges.iter().map(|range| range.length).sum()
            }
            _ => 0,
        }
    }
}

/// What requests are about.
pub(super) struct File<'a> {
    pub(super) image: &'a Image,
    pub(super) serial: &'a [u8],
    /// Whether each write is to be durable before it is answered.
    pub(super) write_through: bool,
}

impl Answer {
    /// The host could not, or the guest may not.
    pub(super) const FAILED: Self = Self {
        status: VIRTIO_BLK_S_IOERR,
        data: 0,
    };

    /// It is done, and `data` bytes are in the guest's memory.
    pub(super) fn done(data: u32) -> Self {
        Self {
            status: VIRTIO_BLK_S_OK,
            data,
        }
    }

    /// Gives a chain back with its status, which counts as written.
    ///
    /// # Errors
    /// When there is no room for it, or the used ring is broken.
    pub(super) fn give(
        self,
        index: usize,
        queues: &mut Queues<'_>,
        head: u16,
        status_at: GuestAddress,
        traffic: &mut Traffic,
    ) -> Result<(), QueueError> {
        traffic.to_guest += u64::from(self.data);
        traffic.errors += u64::from(self.status != VIRTIO_BLK_S_OK);
        let status = u8::try_from(self.status).expect("the three statuses are 0, 1 and 2");
        let what = "status outside of memory";
        (queues.ram().write_obj(status, status_at))
            .map_err(|_| QueueError::Chain { index, what })?;
        queues.push(index, head, self.data.saturating_add(1))
    }
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::IoError => Self::FAILED,
            Refusal::Unsupported => Self {
                status: VIRTIO_BLK_S_UNSUPP,
                data: 0,
            },
        }
    }
}

impl File<'_> {
    /// Answers a request that can be answered without waiting.
    pub(super) fn decide(&self, ram: &Ram, parts: Parts) -> Next {
        let image = self.image;
        let Parts {
            header,
            readable,
            writable,
            ..
        } = parts;
        let failed = Next::Answer(Answer::FAILED);
        let disk = Disk {
            capacity: capacity(image),
            read_only: image.is_read_only(),
            request_max: REQUEST_MAX,
        };
        let request = match disk.decode(header, length(&readable), length(&writable)) {
            Ok(request) => request,
            Err(refusal) => return Next::Answer((&refusal).into()),
        };
        let operation = match request {
            Request::Read { offset } => match image.read_cached_at(ram, &writable, offset) {
                Ok(false) => return Next::Work(Operation::Read { offset }, writable),
                Ok(true) => {
                    let read = u32::try_from(length(&writable)).expect("at most REQUEST_MAX");
                    return Next::Answer(Answer::done(read));
                }
                Err(_) => return failed,
            },
            Request::Write { offset } => {
                let through = self.write_through;
                return Next::Work(Operation::Write { offset, through }, readable);
            }
            Request::Flush => Operation::Flush,
            Request::Identify => {
                let mut segments = writable;
                let room = split_front(&mut segments, ID_LEN.into()).unwrap_or_default();
                return match copy_to(ram, &room, self.serial) {
                    Ok(()) => Next::Answer(Answer::done(ID_LEN)),
                    Err(_) => failed,
                };
            }
            Request::Discard | Request::WriteZeroes => {
                // `decode` has bounded its length.
                let mut data = vec![0; usize::try_from(length(&readable)).unwrap_or(0)];
                if copy_from(ram, &readable, &mut data).is_none() {
                    return failed;
                }
                match disk.ranges(&request, &data) {
                    Err(refusal) => return Next::Answer((&refusal).into()),
                    Ok(ranges) if request == Request::Discard => Operation::Discard(ranges),
                    Ok(ranges) => Operation::WriteZeroes(ranges),
                }
            }
        };
        Next::Work(operation, Vec::new())
    }
}

/// Whole sectors of an image.
pub(super) fn capacity(image: &Image) -> u64 {
    image.len() / SECTOR * SECTOR
}

/// Bytes of what the driver should read, write, discard and zero whole: a block device's sector, which may be larger
/// than virtio's.
pub(super) fn block_size(image: &Image) -> u32 {
    image.device_sector().unwrap_or(SECTOR_LEN)
}
