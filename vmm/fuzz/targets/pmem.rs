//! virtio-pmem: the guest asks for flushes in any way.
#![no_main]

use arbitrary::Unstructured;
use hull_fuzz::Guest;
use hull_vmm::virtio::pmem::Pmem;
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let mut guest = Guest::new(Pmem::new(GuestAddress(1 << 32), 2 << 20));
    while !bytes.is_empty() && guest.act(&mut bytes, |_| Ok(Vec::new())).is_ok() {}
    guest.settle();
});
