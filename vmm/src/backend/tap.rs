//! A tap: a network interface of the host whose frames this process reads and writes.
#![expect(unsafe_code, reason = "tap ioctls, which no crate wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Length in bytes of the `virtio_net_hdr` before every frame (virtio 1.3 §5.1.6).
pub const VNET_HEADER_LEN: usize = 12;

/// What [`Tap::set_offloads`] takes: what the frames' *reader* copes with (`TUN_F_*` of linux/if_tun.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums left to it (`TUN_F_CSUM`).
    pub checksum: bool,
    /// TCP over IPv4 in frames larger than the MTU (`TUN_F_TSO4`).
    pub tso4: bool,
    /// TCP over IPv6 in frames larger than the MTU (`TUN_F_TSO6`).
    pub tso6: bool,
    /// The same with explicit congestion notification (`TUN_F_TSO_ECN`).
    pub ecn: bool,
}

/// The host's end of a network card.
pub trait Tap: AsFd + Send {
    /// Reads one frame with its header; returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; anything else when there will be none.
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize>;

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// `WouldBlock` when the host takes none now; anything else when it does not take this one.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Says which frames may be read. The kernel segments and checksums the others itself.
    ///
    /// # Errors
    /// As `ioctl(2)` with `TUNSETOFFLOAD`.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Says whether frames may come to this queue of the tap and go out by it. What waits in it when it is
    /// detached is lost.
    ///
    /// # Errors
    /// As `ioctl(2)` with `TUNSETQUEUE`: when that is so already, the tap was made without
    /// `IFF_MULTI_QUEUE`, or is gone.
    fn set_attached(&mut self, attached: bool) -> io::Result<()>;
}

/// A descriptor of `/dev/net/tun`: a queue of a tap.
#[derive(Debug)]
pub struct TapFile {
    fd: OwnedFd,
}

/// Why a descriptor is not a tap to be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no attached tun device, or the kernel is too old.
    #[error("{what} of a tap")]
    Ioctl {
        /// Which request.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its frames would look different.
    #[error("tap flags {0:#x} are not IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags(libc::c_int),
}

impl TapFile {
    /// Takes a descriptor opened with `O_NONBLOCK` and attached with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let failed = |what| move |source| TapError::Ioctl { what, source };
        let flags = flags(&fd).map_err(failed("flags"))?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::Flags(flags));
        }
        let len = libc::c_int::try_from(VNET_HEADER_LEN).expect("twelve fits");
        set_header_len(&fd, len).map_err(failed("header length"))?;
        Ok(Self { fd })
    }
}

impl Tap for TapFile {
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::io::read(&self.fd, &mut *frame)
        })?)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, frame))?;
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let bits: libc::c_uint = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
        ]
        .into_iter()
        .filter_map(|(wanted, bit)| wanted.then_some(bit))
        .sum();
        // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(bits),
            )
        };
        checked(result)
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        let flag = if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        // SAFETY: `ifreq` is plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = i16::try_from(flag).expect("both flags are a short");
        // SAFETY: TUNSETQUEUE reads one `ifreq`, and `request` is one; the descriptor is open.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) };
        checked(result)
    }
}

impl AsFd for TapFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The flags it was attached with.
fn flags(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, and `request` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    checked(result)?;
    // SAFETY: TUNGETIFF has set the flags, and any value of the union is a valid integer.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // The kernel's flags are a `short`, of which IFF_NO_CARRIER is the sign.
    Ok(libc::c_int::from(flags.cast_unsigned()))
}

fn set_header_len(fd: &OwnedFd, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, and `len` is one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    checked(result)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = TapFile::new(file.into());
        assert!(matches!(
            refused,
            Err(TapError::Ioctl { what: "flags", .. })
        ));
    }
}
