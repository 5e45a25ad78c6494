//! virtio-blk (virtio 1.3 §5.2): a host file as the guest's disk.
//!
//! The file is raw bytes. Its format is never guessed (GHSA-jmr4-g2hv-mjj6), and whether it may be
//! written is decided here, not by the guest or the descriptor.
//!
//! Threat: chains of any layout, sectors of any number, requests that keep the loop from everybody
//! else. A chain without room for header and status breaks the queue; a request that makes no sense,
//! that is larger than the configuration space says, or that the host fails, gets a status. A turn
//! ends after 4 MiB; the rest of the queue waits for the next.

mod request;

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::Bytes;

use self::request::{
    Disk, HEADER_LEN, ID_LEN, Refusal, Request, SECTOR, Segment, length, split_front, split_last,
};
use crate::backend::image::Image;
use crate::memory::Ram;
use crate::report;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::{Chain, QueueError, Queues};

const QUEUE_SIZE: u16 = 256;

/// Most data segments of a request: a queue's descriptors less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Most bytes of a segment.
const SIZE_MAX: u32 = 128 * 1024;

/// Most bytes of a request, which follows from the two.
const REQUEST_MAX: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

/// Bytes after which others have their turn: a few milliseconds' work.
const TURN: u64 = 4 * 1024 * 1024;

/// What any request costs of a turn besides its bytes, and a flush, which has none, in their stead.
const REQUEST_COST: u64 = 4 * 1024;
const FLUSH_COST: u64 = TURN / 4;

/// A disk.
#[derive(Debug)]
pub struct Blk {
    image: Image,
    serial: [u8; ID_LEN as usize],
}

/// What came of a request.
struct Outcome {
    /// Bytes written into the chain.
    written: u32,
    /// What it took of the turn.
    cost: u64,
}

impl Blk {
    /// A disk of the image's whole sectors. `serial` is cut at 20 bytes.
    #[must_use]
    pub fn new(image: Image, serial: &str) -> Self {
        let mut id = [0; ID_LEN as usize];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self { image, serial: id }
    }

    fn disk(&self) -> Disk {
        Disk {
            capacity: self.image.len() / SECTOR * SECTOR,
            read_only: self.image.is_read_only(),
            request_max: REQUEST_MAX,
        }
    }

    /// Serves one chain.
    fn request(&self, index: usize, ram: &Ram, chain: Chain<'_>) -> Result<Outcome, QueueError> {
        let broken = |what| QueueError::Chain { index, what };
        let mut readable = Vec::new();
        let mut writable = Vec::new();
        for descriptor in chain {
            let segments = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            segments.push((descriptor.addr(), descriptor.len()));
        }
        let status_at = split_last(&mut writable).ok_or(broken("no room for the status"))?;
        let front = split_front(&mut readable, HEADER_LEN).ok_or(broken("no room for a header"))?;
        let header = read_header(ram, &front).ok_or(broken("header outside of memory"))?;

        let decoded = self
            .disk()
            .decode(header, length(&readable), length(&writable));
        let cost = match decoded {
            Ok(Request::Read { .. }) => length(&writable),
            Ok(Request::Write { .. }) => length(&readable),
            Ok(Request::Flush) => FLUSH_COST,
            Ok(Request::Identify) | Err(_) => 0,
        };
        let (status, written) = match decoded {
            Ok(request) => match self.execute(&request, ram, &readable, &writable) {
                Ok(written) => (VIRTIO_BLK_S_OK, written),
                Err(error) => {
                    report::warn(format_args!("disk {request:?}: {error}"));
                    (VIRTIO_BLK_S_IOERR, 0)
                }
            },
            Err(Refusal::IoError) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        let status = u8::try_from(status).expect("the three statuses are 0, 1 and 2");
        ram.write_obj(status, status_at)
            .map_err(|_| broken("status outside of memory"))?;
        Ok(Outcome {
            written: written.saturating_add(1),
            cost: cost + REQUEST_COST,
        })
    }

    /// Carries a request out; returns the bytes of data written into guest memory.
    fn execute(
        &self,
        request: &Request,
        ram: &Ram,
        readable: &[Segment],
        writable: &[Segment],
    ) -> io::Result<u32> {
        match request {
            Request::Read { offset } => {
                self.image.read_at(ram, writable, *offset)?;
                Ok(u32::try_from(length(writable)).expect("at most REQUEST_MAX"))
            }
            Request::Write { offset } => self.image.write_at(ram, readable, *offset).map(|()| 0),
            Request::Flush if self.image.is_read_only() => Ok(0),
            Request::Flush => self.image.sync().map(|()| 0),
            Request::Identify => {
                let mut segments = writable.to_vec();
                let front = split_front(&mut segments, ID_LEN.into()).unwrap_or_default();
                let mut rest = self.serial.as_slice();
                for (address, length) in front {
                    let (now, later) = rest.split_at((length as usize).min(rest.len()));
                    ram.write_slice(now, address).map_err(io::Error::other)?;
                    rest = later;
                }
                Ok(ID_LEN)
            }
        }
    }
}

impl Device for Blk {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let read_only = if self.image.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | read_only
    }

    /// `struct virtio_blk_config` (§5.2.4): capacity in sectors, `size_max`, `seg_max`.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(self.disk().capacity / SECTOR).to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..].copy_from_slice(&SEG_MAX.to_le_bytes());
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        let mut left = TURN;
        while left > 0
            && let Some(chain) = queues.pop(index)?
        {
            let head = chain.head_index();
            let outcome = self.request(index, ram, chain)?;
            queues.push(index, head, outcome.written)?;
            left = left.saturating_sub(outcome.cost);
        }
        // If chains are left, this makes the queue ready again at once.
        queues.listen(index)?;
        Ok(queues.notify(index)?)
    }
}

fn read_header(ram: &Ram, segments: &[Segment]) -> Option<[u8; 16]> {
    let mut header = [0; 16];
    let mut filled = 0;
    for &(address, length) in segments {
        let part = header.get_mut(filled..filled + length as usize)?;
        ram.read_slice(part, address).ok()?;
        filled += length as usize;
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::virtio::queue::testing::{Buffer, Driver};

    const IN: u32 = 0;
    const OUT: u32 = 1;

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [
            kind.to_le_bytes().as_slice(),
            &[0; 4],
            &sector.to_le_bytes(),
        ]
        .concat()
    }

    fn disk(read_only: bool) -> (Blk, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * SECTOR).unwrap();
        let image = Image::new(file.try_clone().unwrap().into(), read_only).unwrap();
        (Blk::new(image, "kelp"), file)
    }

    /// Sends one chain; returns what was written into it, the status last.
    fn send(blk: &mut Blk, buffers: &[Buffer<'_>]) -> Vec<u8> {
        let mut driver = Driver::new(&[QUEUE_SIZE]);
        driver.add(0, buffers);
        blk.serve(0, &mut driver.queues()).unwrap();
        driver.used(0).unwrap().written
    }

    #[test]
    fn what_was_written_is_read_and_is_in_the_file() {
        let (mut blk, file) = disk(false);
        let data = [7; 1024];
        let written = send(
            &mut blk,
            &[
                Buffer::Readable(&header(OUT, 2)),
                Buffer::Readable(&data),
                Buffer::Writable(1),
            ],
        );
        assert_eq!(written, [0]);

        let read = send(
            &mut blk,
            &[
                Buffer::Readable(&header(IN, 1)),
                Buffer::Writable(600),
                Buffer::Writable(424),
                Buffer::Writable(1),
            ],
        );
        assert_eq!(read.len(), 1025);
        assert!(read[..512].iter().all(|&byte| byte == 0));
        assert!(read[512..1024].iter().all(|&byte| byte == 7));
        let mut byte = [0];
        file.read_exact_at(&mut byte, 3 * SECTOR).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn the_status_may_share_a_descriptor_with_data_and_the_header_may_be_cut() {
        let (mut blk, _file) = disk(false);
        let header = header(IN, 0);
        let read = send(
            &mut blk,
            &[
                Buffer::Readable(&header[..5]),
                Buffer::Readable(&header[5..]),
                Buffer::Writable(513),
            ],
        );
        assert_eq!((read.len(), read[512]), (513, 0));
    }

    #[test]
    fn a_write_to_a_read_only_disk_fails_and_changes_nothing() {
        let (mut blk, file) = disk(true);
        let written = send(
            &mut blk,
            &[
                Buffer::Readable(&header(OUT, 0)),
                Buffer::Readable(&[7; 512]),
                Buffer::Writable(1),
            ],
        );
        assert_eq!(written, [1]);
        let mut byte = [9];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn a_file_that_shrank_under_the_disk_gives_an_error_status() {
        let (mut blk, file) = disk(false);
        file.set_len(SECTOR).unwrap();
        let read = send(
            &mut blk,
            &[
                Buffer::Readable(&header(IN, 4)),
                Buffer::Writable(512),
                Buffer::Writable(1),
            ],
        );
        // Only the status counts as written.
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn the_serial_number_is_padded_to_20_bytes() {
        let (mut blk, _file) = disk(false);
        let id = send(
            &mut blk,
            &[
                Buffer::Readable(&header(8, 0)),
                Buffer::Writable(20),
                Buffer::Writable(1),
            ],
        );
        assert_eq!(&id[..6], b"kelp\0\0");
        assert_eq!(id.len(), 21);
    }

    #[test]
    fn chains_without_header_or_status_or_outside_of_memory_break_the_queue() {
        let header = header(IN, 0);
        for buffers in [
            [Buffer::Readable(&header), Buffer::Readable(b"no status")],
            [Buffer::Readable(b"short"), Buffer::Writable(513)],
            [Buffer::Raw(u64::MAX - 8, 16, 1), Buffer::Writable(513)],
            [
                Buffer::Readable(&header),
                Buffer::Raw(u64::MAX - 600, 513, 2),
            ],
        ] {
            let (mut blk, _file) = disk(false);
            let mut driver = Driver::new(&[QUEUE_SIZE]);
            driver.add(0, &buffers);
            let served = blk.serve(0, &mut driver.queues());
            assert!(matches!(served, Err(DeviceError::Queue(_))), "{buffers:?}");
        }
    }

    #[test]
    fn the_configuration_space_tells_capacity_and_bounds_and_ends() {
        let (blk, _file) = disk(false);
        let mut config = [0; 20];
        blk.read_config(0, &mut config);
        assert_eq!(config[..8], 8_u64.to_le_bytes());
        assert_eq!(config[8..12], SIZE_MAX.to_le_bytes());
        assert_eq!(config[12..16], SEG_MAX.to_le_bytes());
        assert_eq!(config[16..], [0; 4]);
        for offset in [15, 16, 17, usize::MAX] {
            blk.read_config(offset, &mut config);
        }
    }

    #[test]
    fn only_a_disk_that_may_not_be_written_says_so() {
        for read_only in [false, true] {
            let says = disk(read_only).0.features() & 1 << VIRTIO_BLK_F_RO != 0;
            assert_eq!(says, read_only);
        }
    }

    #[test]
    fn a_turn_ends_and_the_rest_of_the_queue_is_announced_for_the_next() {
        let (mut blk, _file) = disk(false);
        let mut driver = Driver::new(&[QUEUE_SIZE]);
        for _ in 0..6 {
            let header = header(4, 0);
            driver.add(0, &[Buffer::Readable(&header), Buffer::Writable(1)]);
        }
        let mut turns = Vec::new();
        for _ in 0..3 {
            blk.serve(0, &mut driver.queues()).unwrap();
            let served = std::iter::from_fn(|| driver.used(0)).count();
            turns.push((served, driver.kicked(0)));
        }
        assert_eq!(turns, [(4, true), (2, false), (0, false)]);
    }

    #[test]
    fn a_request_larger_than_the_configuration_space_allows_is_refused() {
        let (mut blk, file) = disk(false);
        file.set_len(REQUEST_MAX * 2).unwrap();
        blk.image = Image::new(file.into(), false).unwrap();
        let header = header(IN, 0);
        // 272 MiB of them, all in one place: a descriptor's length is the driver's word alone.
        let huge = Buffer::Raw(0x1000_0000, 0x0100_0000, 3);
        let mut driver = Driver::new(&[QUEUE_SIZE]);
        let mut buffers = vec![Buffer::Readable(&header)];
        buffers.extend(std::iter::repeat_n(huge, 17));
        buffers.push(Buffer::Writable(1));
        driver.add(0, &buffers);
        blk.serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), 1);
    }
}
