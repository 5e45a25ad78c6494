//! virtio-fs's front end and the vhost-user channel: a daemon that answers anything.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::virtio::fs::Fs;
use libfuzzer_sys::fuzz_target;

/// What an honest daemon answers, in its order: features, protocol features, acknowledgements of
/// memory and two rings, and of giving them back (QEMU's docs/interop/vhost-user.rst).
const START: [u32; 14] = [2, 5, 8, 10, 9, 13, 12, 18, 8, 10, 9, 13, 12, 18];
const STOP: [u32; 5] = [18, 11, 18, 11, 34];

/// One answer, right more often than not.
fn answer(request: u32, bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if bytes.ratio(1, 32)? {
        let length = bytes.int_in_range(0..=64)?;
        return Ok(bytes.bytes(length.min(bytes.len()))?.to_vec());
    }
    let (mut number, mut flags, mut size, mut payload) = (request, 5_u32, 8_u32, 0_u64);
    match (request, bytes.int_in_range(0..=63)?) {
        (_, 0) => number = bytes.arbitrary()?,
        (_, 1) => flags = bytes.arbitrary()?,
        (_, 2) => size = bytes.arbitrary()?,
        (_, 3) => payload = bytes.arbitrary()?,
        // Features: those that are needed, and any.
        (1 | 15, _) => payload = 1 << 32 | 1 << 30 | 1 << 3 | bytes.arbitrary::<u64>()?,
        _ => {}
    }
    let fields = [number, flags, size];
    let mut answer: Vec<u8> = fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect();
    answer.extend(payload.to_ne_bytes());
    Ok(answer)
}

/// Everything the daemon will ever say, ahead of the questions.
fn answers(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for request in [1, 15] {
        all.extend(answer(request, bytes)?);
    }
    for _ in 0..bytes.int_in_range(0..=3)? {
        for request in START.into_iter().chain(STOP) {
            all.extend(answer(request, bytes)?);
        }
    }
    Ok(all)
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let (ours, mut daemon) = UnixStream::pair().expect("sockets");
    let said = answers(&mut bytes).unwrap_or_default();
    daemon.write_all(&said).expect("a few kilobytes fit");
    // It never says more: what is missing is an end of file, at once, and not a silence.
    daemon.shutdown(Shutdown::Write).expect("it is connected");
    let Ok(fs) = Fs::new(ours.into(), "hull") else {
        return;
    };
    let mut guest = Guest::new(fs);
    while !bytes.is_empty() && guest.act(&mut bytes, |_| Ok(vec![0; 40])).is_ok() {}
    guest.settle();
});
