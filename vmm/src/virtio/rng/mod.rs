//! virtio-rng (virtio 1.3 §5.4): the driver offers buffers, the device fills them with entropy.
//!
//! Threat: a guest that asks for gigabytes. A request is answered with at most 64 KiB, whatever it
//! offers, and a notification with at most one queue of requests.

use std::io::Write;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::{Queues, writer};

/// Most bytes that one request is given.
const MAX_BYTES: usize = 64 * 1024;

/// Bytes drawn at a time: what the kernel returns without a pause (getrandom(2)).
const CHUNK: usize = 256;

/// The host's entropy, by way of `getrandom(2)`.
#[derive(Debug, Default)]
pub struct Rng;

impl Device for Rng {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        queues.drain(index, |chain| {
            let mut buffer = writer(index, ram, &chain)?;
            let wanted = buffer.available_bytes().min(MAX_BYTES);
            let mut written = 0;
            while written < wanted {
                let mut entropy = [0; CHUNK];
                let length = CHUNK.min(wanted - written);
                // Fewer bytes than asked for are a right answer (§5.4.6.1), also after a failure.
                let Ok(length) = getrandom(&mut entropy[..length], GetRandomFlags::empty()) else {
                    break;
                };
                if buffer.write_all(&entropy[..length]).is_err() {
                    break;
                }
                written += length;
            }
            Ok(u32::try_from(written).expect("at most MAX_BYTES"))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::testing::{Buffer, Driver};

    #[test]
    fn a_buffer_is_filled() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Writable(300)]);
        Rng.serve(0, &mut driver.queues()).unwrap();
        let used = driver.used(0).unwrap();
        assert_eq!(used.written.len(), 300);
        assert!(used.written.iter().any(|&byte| byte != 0));
    }

    #[test]
    fn a_huge_buffer_is_filled_in_part() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Writable(0x3_0000)]);
        Rng.serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), MAX_BYTES);
    }

    #[test]
    fn a_buffer_for_reading_gets_nothing() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Readable(b"tide")]);
        Rng.serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), 0);
    }
}
