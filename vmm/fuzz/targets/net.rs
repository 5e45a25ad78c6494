//! virtio-net: frames of any kind in both directions, by one pair of queues or several, and commands.
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

    fn set_attached(&mut self, _: bool) -> io::Result<()> {
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

/// A tap's queues, one for each pair of the card's, and their other ends.
fn tap(pairs: u8) -> (Vec<Wire>, Vec<UnixDatagram>) {
    (0..pairs).map(|_| wire()).unzip()
}

/// A command that asks for a number of pairs (virtio 1.3 §5.1.6.5.6), or a `virtio_net_hdr` (§5.1.6), with
/// values that make sense more often than not.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    if bytes.ratio(1, 8)? {
        return Ok(vec![4, 0, bytes.int_in_range(0..=4)?, 0]);
    }
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
    let pairs = bytes.int_in_range(1..=3).unwrap_or(1);
    let net = Net::new([2, 0, 0, 0, 0, 1], Some(1500), pairs, Limits::default());
    let mut guest = Guest::new(net.expect("a proper address"));
    let (queues, mut host) = tap(pairs);
    (guest.device().plug(queues)).expect("the wire takes any offload");
    while !bytes.is_empty() {
        let done = match bytes.int_in_range(0..=9) {
            Ok(0) => {
                let length = bytes.int_in_range(0..=2048_usize).unwrap_or(0);
                // What the kernel puts before a frame, and the frame.
                let _ = host[length % host.len()].send(&vec![0; length]);
                Ok(())
            }
            Ok(1) if bytes.ratio(1, 8).unwrap_or(false) => {
                let (queues, wires) = tap(pairs);
                host = wires;
                (guest.device().plug(queues)).expect("the wire takes any offload");
                Ok(())
            }
            Ok(2) => {
                for wire in &host {
                    let _ = wire.recv(&mut [0; 2048]);
                }
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
