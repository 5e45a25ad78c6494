//! Network interfaces and namespaces, as far as netlink does not know them.

#![expect(
    unsafe_code,
    reason = "ioctls, and an option of sockets that no crate has"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Brings the network interface `lo` up (netdevice(7)).
///
/// # Errors
/// What `socket(2)` or the ioctls say.
pub fn bring_up_loopback() -> io::Result<()> {
    // SAFETY: takes three integers; the result is checked before it is used.
    let socket = Errno::result(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: a descriptor that was opened a line above, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: an `ifreq` is plain data, for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::try_from(*from).expect("ASCII");
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the `ifreq` it is given.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    })?;
    let up = libc::c_short::try_from(libc::IFF_UP).expect("a bit below 16");
    // SAFETY: the kernel has just filled in `ifru_flags`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads the `ifreq` it is given.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })?;
    Ok(())
}

/// The pairs of queues that a network card has and its driver uses.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    /// How many there are.
    pub most: u32,
    /// How many of them are used.
    pub used: u32,
}

/// `struct ethtool_channels` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct EthtoolChannels {
    command: u32,
    /// Receive and transmit queues, which virtio's cards have in pairs alone, and others.
    most_apart: [u32; 3],
    most: u32,
    apart: [u32; 3],
    used: u32,
}

/// Asks how many pairs of queues the network interface has, in the namespace of `socket`.
///
/// # Errors
/// `EOPNOTSUPP` if its driver has none, `ENODEV` if there is no such interface.
pub fn channels(socket: BorrowedFd<'_>, interface: &str) -> io::Result<Channels> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_GCHANNELS,
        ..EthtoolChannels::default()
    };
    ethtool(socket, interface, &mut channels)?;
    Ok(Channels {
        most: channels.most,
        used: channels.used,
    })
}

/// Has the driver of the network interface use so many pairs of queues.
///
/// # Errors
/// `EINVAL` if the card has fewer; what the driver says.
pub fn set_channels(socket: BorrowedFd<'_>, interface: &str, used: u32) -> io::Result<()> {
    const ETHTOOL_SCHANNELS: u32 = 0x3d;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_SCHANNELS,
        used,
        ..EthtoolChannels::default()
    };
    ethtool(socket, interface, &mut channels)
}

fn ethtool(
    socket: BorrowedFd<'_>,
    interface: &str,
    channels: &mut EthtoolChannels,
) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // SAFETY: an `ifreq` is plain data, for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut *channels).cast();
    // SAFETY: SIOCETHTOOL with these commands reads, and writes, one `ethtool_channels`, to which the
    // `ifreq` points, and which lives across the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

/// The number that BPF programs know this network namespace by (`SO_NETNS_COOKIE`).
///
/// # Errors
/// What `socket(2)` or `getsockopt(2)` says.
pub fn network_namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("eight");
    // SAFETY: the kernel writes at most `length` bytes, which `cookie` has, and their number.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}
