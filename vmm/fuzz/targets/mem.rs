//! virtio-mem: blocks plugged, unplugged and asked about, of the region and outside of it, while the
//! host asks for more and less.
#![no_main]

use std::io;

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::virtio::mem::{Backing, Mem};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

/// Within the fake driver's memory.
const START: u64 = 0x1000_0000;
const REGION: u64 = 200 << 20;
const BLOCK: u64 = 2 << 20;

/// A host that has room for half of the region at times.
struct Host {
    mapped: u64,
    full: bool,
}

impl Backing for Host {
    fn map(&mut self, start: GuestAddress, length: u64) -> io::Result<()> {
        if self.full {
            self.full = false;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert_eq!(start.0, START + self.mapped, "slots follow one another");
        self.mapped += length;
        assert!(self.mapped <= REGION);
        Ok(())
    }
}

fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let address = if bytes.ratio(1, 16)? {
        bytes.arbitrary()?
    } else {
        START + u64::from(bytes.arbitrary::<u8>()? % 110) * BLOCK
    };
    let blocks = if bytes.ratio(1, 16)? {
        bytes.arbitrary()?
    } else {
        u16::from(bytes.arbitrary::<u8>()? % 110)
    };
    let mut request = u64::from(bytes.arbitrary::<u16>()? % 5)
        .to_le_bytes()
        .to_vec();
    request.extend(address.to_le_bytes());
    request.extend(u64::from(blocks).to_le_bytes());
    Ok(request)
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let host = Host {
        mapped: 0,
        full: bytes.arbitrary().unwrap_or(false),
    };
    let mut guest = Guest::new(Mem::new(host, GuestAddress(START), REGION));
    while !bytes.is_empty() {
        if bytes.ratio(1, 16).unwrap_or(false) {
            let mib = bytes.arbitrary::<u16>().unwrap_or(0) % 256;
            let _ = guest.device().request(mib.into());
        }
        if guest.act(&mut bytes, request).is_err() {
            break;
        }
        assert!(guest.device().plugged() <= REGION);
    }
    guest.settle();
});
