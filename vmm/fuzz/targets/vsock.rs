//! virtio-vsock: packets of any kind, and a host that connects, writes, reads and closes.
#![no_main]

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use arbitrary::{Result, Unstructured};
use hull_fuzz::Guest;
use hull_vmm::virtio::vsock::{Dialler, Vsock};
use libfuzzer_sys::fuzz_target;

/// Few ports, so that packets meet connections.
const PORTS: u32 = 4;

struct Switchboard(mpsc::Sender<UnixStream>);

impl Dialler for Switchboard {
    fn dialled(&mut self, port: u32, socket: OwnedFd) -> io::Result<()> {
        if port == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.0.send(socket.into()).map_err(io::Error::other)
    }
}

/// A header (virtio 1.3 §5.10.6), and sometimes its data.
fn request(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    packet.extend(
        if bytes.ratio(15, 16)? {
            3
        } else {
            bytes.arbitrary::<u64>()?
        }
        .to_le_bytes(),
    );
    packet.extend(
        if bytes.ratio(15, 16)? {
            2
        } else {
            bytes.arbitrary::<u64>()?
        }
        .to_le_bytes(),
    );
    packet.extend(bytes.int_in_range(0..=PORTS)?.to_le_bytes());
    packet.extend(bytes.int_in_range(0..=PORTS)?.to_le_bytes());
    let length = *bytes.choose(&[0_u32, 0, 0, 1, 100, 4096, 0x2_0000, 0x2_0001, u32::MAX])?;
    packet.extend(length.to_le_bytes());
    packet.extend(
        if bytes.ratio(15, 16)? {
            1
        } else {
            bytes.arbitrary::<u16>()?
        }
        .to_le_bytes(),
    );
    packet.extend(bytes.int_in_range(0..=8_u16)?.to_le_bytes());
    packet.extend(bytes.int_in_range(0..=3_u32)?.to_le_bytes());
    packet.extend(bytes.choose(&[0, 100, 0x4_0000, u32::MAX])?.to_le_bytes());
    packet.extend(bytes.choose(&[0, 100, 0x4_0000, u32::MAX])?.to_le_bytes());
    if length <= 4096 {
        packet.resize(44 + length as usize, 7);
    }
    Ok(packet)
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Unstructured::new(bytes);
    let (sender, dialled) = mpsc::channel();
    let vsock = Vsock::new(3, Box::new(Switchboard(sender))).expect("a proper address");
    let mut guest = Guest::new(vsock);
    let mut sockets: Vec<UnixStream> = Vec::new();
    while !bytes.is_empty() {
        sockets.extend(dialled.try_iter());
        let which = usize::from(bytes.arbitrary::<u8>().unwrap_or(0)) % sockets.len().max(1);
        let done = match (bytes.int_in_range(0..=15), sockets.get_mut(which)) {
            (Ok(0), _) => {
                let (ours, theirs) = UnixStream::pair().expect("sockets");
                for socket in [&ours, &theirs] {
                    socket.set_nonblocking(true).expect("sockets");
                }
                let port = bytes.int_in_range(0..=PORTS).unwrap_or(0);
                guest.device().connect(port, theirs.into());
                sockets.push(ours);
                Ok(())
            }
            (Ok(1), Some(socket)) => {
                let _ = socket.write(&[9; 5000]);
                Ok(())
            }
            (Ok(2), Some(socket)) => {
                let _ = socket.read(&mut [0; 5000]);
                Ok(())
            }
            (Ok(3), Some(_)) => {
                sockets.swap_remove(which);
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
