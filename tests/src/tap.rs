//! A tap with its descriptor, as the shim hands it to the VMM.

use std::os::fd::OwnedFd;

use hull_shim::network::tap;

/// A tap that lives as long as its descriptor.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes a tap with the host's address, such as `192.0.2.1/24`, and brings it up.
    ///
    /// # Panics
    /// When the kernel refuses it.
    #[must_use]
    pub fn up(name: &str, address: &str) -> Self {
        let created = tap::create(name);
        let (descriptor, name) = created.expect("make a tap; is the module tun loaded?");
        for words in [
            ["address", "add", address, "dev", &name].as_slice(),
            ["link", "set", &name, "up"].as_slice(),
        ] {
            let done = crate::command("ip", words, b"");
            assert_eq!(done.status, 0, "{done:#?}");
        }
        Self { descriptor, name }
    }

    /// The interface's name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.descriptor
    }
}
