//! virtio-blk: requests of any kind to a small disk.
#![no_main]

use std::fs::File;

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::backend::image::Image;
use hull_vmm::virtio::blk::Blk;
use libfuzzer_sys::fuzz_target;
use rustix::fs::MemfdFlags;

/// Small, so that a request is no long work.
const DISK: u64 = 64 * 1024;

const QUEUES: u16 = 2;

/// A header (virtio 1.3 §5.2.6): type, reserved, sector.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let kind: u32 = *bytes.choose(&[0, 1, 1, 4, 8, 11, 13, 14, 99])?;
    let sector = match bytes.int_in_range(0..=3)? {
        0 => bytes.arbitrary()?,
        _ => u64::from(bytes.arbitrary::<u8>()?),
    };
    Ok([
        kind.to_le_bytes().as_slice(),
        &[0; 4],
        &sector.to_le_bytes(),
    ]
    .concat())
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let file: File = rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC)
        .expect("memory")
        .into();
    file.set_len(DISK).expect("memory");
    let read_only = bytes.arbitrary().unwrap_or(false);
    let image = Image::new(file.into(), read_only).expect("a regular file");
    let mut blk = Blk::by_hand(QUEUES).expect("descriptors");
    blk.insert(image, "kelp");
    let mut guest = Guest::new(blk);
    while !bytes.is_empty() {
        // What its threads would do meanwhile.
        if let Ok(queue @ 0..QUEUES) = bytes.int_in_range(0..=7) {
            guest.device().carry_out(queue.into());
        }
        if guest.act(&mut bytes, request).is_err() {
            break;
        }
    }
    guest.settle();
    while (0..QUEUES).any(|queue| guest.device().carry_out(queue.into())) {
        guest.settle();
    }
});
