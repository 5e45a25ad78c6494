//! The transport alone, before a device that reads and fills every chain: registers, rings and
//! notifications in any order.
#![no_main]

use std::io::{Read, Write};

use arbitrary::Unstructured;
use hull_fuzz::Guest;
use hull_vmm::virtio::device::{Device, DeviceError, DeviceId};
use hull_vmm::virtio::queue::{Queues, reader, writer};
use libfuzzer_sys::fuzz_target;

struct Echo;

impl Device for Echo {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }

    fn features(&self) -> u64 {
        0xff
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(offset.to_le_bytes()[0]);
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        queues.drain(index, |chain| {
            let mut copy = [0; 64];
            let read = reader(index, ram, &chain)?.read(&mut copy).unwrap_or(0);
            let written = writer(index, ram, &chain)?
                .write(&copy[..read])
                .unwrap_or(0);
            Ok(u32::try_from(written).expect("at most 64"))
        })?;
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let mut guest = Guest::new(Echo);
    while !bytes.is_empty() && guest.act(&mut bytes, |_| Ok(vec![7; 16])).is_ok() {}
    guest.settle();
});
