//! Taps.
#![expect(unsafe_code, reason = "TUNSETIFF, which no crate wraps safely")]

use std::ffi::c_char;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

nix::ioctl_readwrite_bad!(
    /// `TUNSETIFF` of `linux/if_tun.h`, which gives the name back.
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// Makes a tap in this thread's namespace, as hull-vmm takes it, and tells its name: `name`, with a
/// number for `%d`. Each descriptor is one of its `queues`; it is gone with the last.
pub(super) fn create(name: &str, queues: u8) -> io::Result<(Vec<OwnedFd>, String)> {
    let (first, name) = attach(name, queues > 1)?;
    let further = (1..queues).map(|_| attach(&name, true).map(|(queue, _)| queue));
    let queues = std::iter::once(Ok(first)).chain(further);
    Ok((queues.collect::<io::Result<_>>()?, name))
}

/// A queue of the tap `name`, which is made if it is not there and otherwise has to be of `several`.
fn attach(name: &str, several: bool) -> io::Result<(OwnedFd, String)> {
    // hull-vmm may not change the mode of a descriptor: it has some that it shares with the shim.
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("these flags are a short");
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which `request` is.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw mut request) }?;
    let given = request.ifr_name.iter().take_while(|&&byte| byte != 0);
    let given: Vec<u8> = given.flat_map(|byte| byte.to_ne_bytes()).collect();
    let given = String::from_utf8(given).map_err(io::Error::other)?;
    Ok((tun.into(), given))
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn every_queue_of_a_tap_is_non_blocking_from_the_start() {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace, as root");
            create("hull%d", 2).expect("make a tap; is the module tun loaded?")
        });
        let (queues, name) = made.join().unwrap();
        assert_eq!((queues.len(), name.as_str()), (2, "hull0"));
        for queue in queues {
            let flags = fcntl(&queue, FcntlArg::F_GETFL).unwrap();
            assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        }
    }
}
