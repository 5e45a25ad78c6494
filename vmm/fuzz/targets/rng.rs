//! virtio-rng: the guest asks for entropy in any way.
#![no_main]

use arbitrary::Unstructured;
use hull_fuzz::Guest;
use hull_vmm::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let mut guest = Guest::new(Rng::default());
    while !bytes.is_empty() && guest.act(&mut bytes, |_| Ok(Vec::new())).is_ok() {}
    guest.settle();
});
