//! A tap with its descriptor, as the shim would hand it to the VMM.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF has no safe wrapper in a library we use"
)]

use std::ffi::c_char;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF` of `<linux/if_tun.h>`.
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// A tap that lives as long as its descriptors, one for each queue.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<File>,
    name: String,
}

impl Tap {
    /// Makes a tap with the host's address, such as `192.0.2.1/24`, and brings it up.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn up(name: &str, address: &str) -> Self {
        Self::with_queues(name, address, 1)
    }

    /// The same with several queues.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn with_queues(name: &str, address: &str, queues: u8) -> Self {
        let queues = (0..queues).map(|_| Self::queue(name, queues > 1)).collect();
        for words in [
            ["address", "add", address, "dev", name].as_slice(),
            ["link", "set", name, "up"].as_slice(),
        ] {
            let done = crate::command("ip", words, b"");
            assert_eq!(done.status, 0, "{done:#?}");
        }
        Self {
            queues,
            name: name.to_owned(),
        }
    }

    fn queue(name: &str, several: bool) -> File {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("open /dev/net/tun; is the module tun loaded?");
        // SAFETY: an ifreq is plain data, for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        assert!(
            name.len() < request.ifr_name.len(),
            "{name} is too long for an interface"
        );
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if several {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("the flags fit");
        // SAFETY: the descriptor is open, and the request outlives the call, which only reads it.
        unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }.expect("TUNSETIFF");
        file
    }

    /// How many queues it has.
    ///
    /// # Panics
    /// When there are more than it was made with.
    #[must_use]
    pub fn queues(&self) -> u8 {
        u8::try_from(self.queues.len()).expect("they were counted by a byte")
    }

    /// The interface's name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<Tap> for Vec<OwnedFd> {
    fn from(tap: Tap) -> Self {
        tap.queues.into_iter().map(OwnedFd::from).collect()
    }
}
