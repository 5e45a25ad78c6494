//! What the kernel tells of its devices (`Documentation/ABI/testing/sysfs-uevent`): here, of memory
//! that came or went.
//!
//! Threat: a container with CAP_NET_ADMIN in the agent's network namespace may send to the same group.
//! Only what the kernel itself has sent is believed; how often the machine is looked at is the caller's
//! to bound, for who fills the socket makes messages be lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recvfrom, socket_with,
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
            let mut ready = self.0.readable().await?;
            let message = match ready.try_io(|socket| receive(socket.get_ref(), &mut bytes)) {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => continue,
            };
            if message.is_some_and(is_of_memory) {
                return Ok(());
            }
            // There may always be another; this is not all that the agent does.
            tokio::task::yield_now().await;
        }
    }
}

/// Receives a message; none if it is not the kernel's, whose address is 0 (netlink(7)).
fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<&[u8]>> {
    let (length, _, sender) = recvfrom(socket, &mut *bytes, RecvFlags::empty())?;
    let sender = sender.and_then(|sender| netlink::SocketAddrNetlink::try_from(sender).ok());
    let is_kernels = sender.is_some_and(|sender| sender.pid() == 0);
    Ok(is_kernels.then_some(&bytes[..length]))
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
    use rustix::net::{SendFlags, sendto};

    use super::*;

    fn socket(protocol: Option<rustix::net::Protocol>) -> OwnedFd {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::DGRAM);
        socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap()
    }

    #[test]
    fn what_another_process_says_is_no_message() {
        let [ours, theirs] = [(); 2].map(|()| socket(Some(netlink::USERSOCK)));
        bind(&ours, &netlink::SocketAddrNetlink::new(0, 0)).unwrap();
        let address = rustix::net::getsockname(&ours).unwrap();
        let message = b"online@/devices/system/memory/memory40\0";
        sendto(&theirs, message, SendFlags::empty(), &address).unwrap();

        assert_eq!(receive(&ours, &mut [0; 64]).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_says_is_one() {
        // RTM_GETLINK for the interface 1 (rtnetlink(7)): a header, and `struct ifinfomsg`.
        let request: [u32; 8] = [32, 18 | 1 << 16, 7, 0, 0, 1, 0, 0];
        let request: Vec<u8> = request.iter().flat_map(|word| word.to_le_bytes()).collect();
        // NETLINK_ROUTE is 0.
        let asks = socket(None);
        rustix::net::send(&asks, &request, SendFlags::empty()).unwrap();

        let mut bytes = [0; 8192];
        let answer = receive(&asks, &mut bytes).unwrap();

        // nlmsghdr.nlmsg_seq is the request's.
        assert_eq!(answer.unwrap()[8..12], 7_u32.to_le_bytes());
    }

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
