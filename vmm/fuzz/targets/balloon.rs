//! virtio-balloon: pages given up, taken back and reported, of the guest's own and others.
#![no_main]

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::virtio::balloon::Balloon;
use libfuzzer_sys::fuzz_target;

/// An array of page numbers, of which few are outside of memory.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut array = Vec::new();
    for _ in 0..bytes.int_in_range(0..=32)? {
        let page = if bytes.ratio(1, 16)? {
            bytes.arbitrary()?
        } else {
            0x1_8000 + u32::from(bytes.arbitrary::<u8>()?)
        };
        array.extend(page.to_le_bytes());
    }
    Ok(array)
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let mut guest = Guest::unchecked(Balloon::new());
    while !bytes.is_empty() {
        if bytes.ratio(1, 32).unwrap_or(false) {
            let target = bytes.arbitrary().unwrap_or(0);
            guest.device().set_target(target);
        }
        if guest.act(&mut bytes, request).is_err() {
            break;
        }
    }
    guest.settle();
});
