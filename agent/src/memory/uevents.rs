//! What the kernel tells of its devices (`Documentation/ABI/testing/sysfs-uevent`): here, of memory
//! that came or went.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The group that the kernel itself sends to; another is udev's.
const KERNEL: u32 = 1;

/// What the path of each memory block begins with.
const MEMORY: &[u8] = b"@/devices/system/memory/";

/// A socket that hears them.
#[derive(Debug)]
pub(super) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Hears all from now on.
    ///
    /// # Errors
    /// As `socket(2)` and `bind(2)`.
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(sys::watch(socket, Interest::READABLE)?))
    }

    /// Completes when memory has come or gone, or when so much has happened that it may have.
    ///
    /// # Errors
    /// As `recv(2)`.
    pub(super) async fn memory_changed(&self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let mut receive = |socket: &OwnedFd| {
                let received = recv(socket, &mut bytes, RecvFlags::empty());
                received.map(|(length, _)| length).map_err(io::Error::from)
            };
            let mut ready = self.0.readable().await?;
            let length = match ready.try_io(|socket| receive(socket.get_ref())) {
                Ok(Ok(length)) => length,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => continue,
            };
            if is_of_memory(&bytes[..length.min(4096)]) {
                return Ok(());
            }
        }
    }
}

/// Whether a message is of a memory block that is in use from now on, or is not any more.
fn is_of_memory(message: &[u8]) -> bool {
    [b"online".as_slice(), b"offline"].iter().any(|action| {
        let rest = message.strip_prefix(*action);
        rest.is_some_and(|rest| rest.starts_with(MEMORY))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_comes_or_goes_is_told_from_all_else() {
        for (message, memory) in [
            (
                "online@/devices/system/memory/memory40\0ACTION=online\0",
                true,
            ),
            ("offline@/devices/system/memory/memory40\0", true),
            ("add@/devices/system/memory/memory40\0", false),
            ("online@/devices/system/cpu/cpu1\0", false),
            ("change@/devices/virtual/block/dm-0\0", false),
            ("", false),
        ] {
            assert_eq!(is_of_memory(message.as_bytes()), memory, "{message}");
        }
    }
}
