//! virtio-rng: the guest asks for entropy in any way.
#![no_main]

use std::io;

use arbitrary::Unstructured;
use hull_fuzz::Guest;
use hull_vmm::virtio::rng::{Entropy, Rng};
use libfuzzer_sys::fuzz_target;

/// A source that is the same each time, and fails at times.
struct Same(u8);

impl Entropy for Same {
    fn draw(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0 = self.0.wrapping_add(1);
        if self.0 == 0 {
            return Err(io::ErrorKind::Other.into());
        }
        bytes.fill(self.0);
        Ok(bytes.len())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let source = Same(bytes.arbitrary().unwrap_or(0));
    let mut guest = Guest::new(Rng::of(source));
    while !bytes.is_empty() && guest.act(&mut bytes, |_| Ok(Vec::new())).is_ok() {}
    guest.settle();
});
