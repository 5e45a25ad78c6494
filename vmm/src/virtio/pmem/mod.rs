//! virtio-pmem (virtio 1.3 §5.19): a file of the host's in the guest's address space, read in place. The
//! pages are the host's page cache, the same for all machines that have the file.
//!
//! Threat: a guest that writes what others read. The file is mapped for reading alone, KVM has it as
//! memory that the guest can't write (KVM_MEM_READONLY), and no device reaches it: it is no part of `Ram`.

use std::io::{Read, Write};

use vm_memory::GuestAddress;

use crate::virtio::device::{Device, DeviceError, DeviceId, copy_config};
use crate::virtio::queue::{Queues, reader, writer};

/// Bytes of `struct virtio_pmem_req` and of `struct virtio_pmem_resp` (§5.19.6).
const MESSAGE_LEN: usize = 4;

const VIRTIO_PMEM_REQ_TYPE_FLUSH: u32 = 0;

/// What a flush is answered (§5.19.7): done, or a request that is none.
const DONE: u32 = 0;
const FAILED: u32 = u32::MAX;

/// A range of the guest's addresses that holds a file.
#[derive(Debug)]
pub struct Pmem {
    start: GuestAddress,
    bytes: u64,
}

impl Pmem {
    /// The device of the `bytes` bytes at `start`.
    #[must_use]
    pub fn new(start: GuestAddress, bytes: u64) -> Self {
        Self { start, bytes }
    }
}

impl Device for Pmem {
    fn id(&self) -> DeviceId {
        DeviceId::PersistentMemory
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        0
    }

    /// `struct virtio_pmem_config` (§5.19.4).
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let bytes = [self.start.0, self.bytes].map(u64::to_le_bytes);
        copy_config(bytes.as_flattened(), offset, data);
    }

    /// Nothing can have been written, so each flush is done.
    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        queues.drain(index, |chain| {
            let mut kind = [0; MESSAGE_LEN];
            let read = reader(index, ram, &chain)?.read_exact(&mut kind);
            let answer = match (read, u32::from_le_bytes(kind)) {
                (Ok(()), VIRTIO_PMEM_REQ_TYPE_FLUSH) => DONE,
                _ => FAILED,
            };
            let written = writer(index, ram, &chain)?.write(&answer.to_le_bytes());
            Ok(u32::try_from(written.unwrap_or(0)).expect("at most MESSAGE_LEN"))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::testing::{Buffer, Driver};

    fn device() -> Pmem {
        Pmem::new(GuestAddress(3 << 30), 2 << 20)
    }

    #[test]
    fn the_driver_is_told_where_the_file_is() {
        let mut config = [0xee; 18];
        device().read_config(0, &mut config);
        assert_eq!(config[..8], (3_u64 << 30).to_le_bytes());
        assert_eq!(config[8..16], (2_u64 << 20).to_le_bytes());
        assert_eq!(config[16..], [0xee; 2]);
        device().read_config(usize::MAX, &mut config);
    }

    #[test]
    fn a_flush_is_done_and_what_is_none_fails() {
        let mut driver = Driver::new(&[16]);
        for (request, answer) in [
            (&[0_u8; 4][..], &DONE.to_le_bytes()[..]),
            (&[1, 0, 0, 0], &FAILED.to_le_bytes()),
            (&[0, 0, 0], &FAILED.to_le_bytes()),
        ] {
            driver.add(0, &[Buffer::Readable(request), Buffer::Writable(4)]);
            device().serve(0, &mut driver.queues()).unwrap();
            assert_eq!(driver.used(0).unwrap().written, answer, "{request:?}");
        }
    }

    #[test]
    fn an_answer_that_has_no_room_is_cut() {
        let mut driver = Driver::new(&[16]);
        driver.add(0, &[Buffer::Readable(&[0; 4]), Buffer::Writable(2)]);
        device().serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), 2);
        driver.add(0, &[Buffer::Readable(&[0; 4])]);
        device().serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), 0);
    }
}
