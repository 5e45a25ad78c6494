//! virtio-net: frames of any kind in both directions.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::backend::tap::{Offloads, Tap};
use hull_vmm::virtio::net::{Limits, Net};
use libfuzzer_sys::fuzz_target;

/// A tap whose wire is a socket.
struct Wire(UnixDatagram);

impl Tap for Wire {
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        self.0.recv(frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(|_| ())
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn wire() -> (Wire, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().expect("sockets");
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).expect("sockets");
    }
    (Wire(ours), theirs)
}

/// A `virtio_net_hdr` (virtio 1.3 §5.1.6), with values that make sense more often than not.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut header = [0; 12];
    header[0] = bytes.int_in_range(0..=3)?;
    header[1] = *bytes.choose(&[0, 0, 0, 1, 4, 0x81, 3, 5])?;
    for field in [2, 4, 6, 8] {
        let value = bytes.int_in_range(0..=64_u16)?;
        header[field..field + 2].copy_from_slice(&value.to_le_bytes());
    }
    Ok(header.to_vec())
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let (tap, mut host) = wire();
    let mut net =
        Net::new([2, 0, 0, 0, 0, 1], Some(1500), Limits::default()).expect("a proper address");
    net.plug(tap).expect("the wire takes any offload");
    let mut guest = Guest::new(net);
    while !bytes.is_empty() {
        let done = match bytes.int_in_range(0..=9) {
            Ok(0) => {
                let length = bytes.int_in_range(0..=2048_usize).unwrap_or(0);
                // What the kernel puts before a frame, and the frame.
                let _ = host.send(&vec![0; length]);
                Ok(())
            }
            Ok(1) if bytes.ratio(1, 8).unwrap_or(false) => {
                let (tap, wire) = wire();
                host = wire;
                guest
                    .device()
                    .plug(tap)
                    .expect("the wire takes any offload");
                Ok(())
            }
            Ok(2) => {
                let _ = host.recv(&mut [0; 2048]);
                Ok(())
            }
            _ => guest.act(&mut bytes, request),
        };
        if done.is_err() {
            break;
        }
    }
    guest.settle();
});
