//! The addresses that a network shares with the host that it stands for: 127.0.0.1, ::1 and those of
//! its interfaces (`docker run --network host`).
//!
//! ```text
//! container ─▶ 127.0.0.1:5432 ─┬─ somebody in the guest has that port ─▶ they get it
//!                              └─ nobody ─▶ 169.254.1.2:5432 ─▶ the host's end ─▶ 127.0.0.1:5432 there
//! ```
//! BPF programs, which the kernel asks when a container connects a socket or sends a datagram, look for a
//! socket that would get it (`bpf_sk_lookup_tcp`, `bpf_sk_lookup_udp`) and, if there is none, put
//! one of `agent_protocol::host_addresses` in the place of the address. They undo it in the
//! addresses that the container is shown. So no packet is looked at, what listens in the guest comes first,
//! and nobody has to know which ports the host has.

mod program;
#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a processor's registers, of which instructions take the lower part"
)]
mod tests;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use self::program::HOOKS;
use super::Namespace;
use crate::sys::{self, ProgramKind};

/// The cgroup above all containers'.
const CONTAINERS: &str = "/sys/fs/cgroup/hull";

/// The programs of one network, which are asked as long as this is there.
pub(super) struct SharedAddresses {
    _links: Vec<OwnedFd>,
}

impl SharedAddresses {
    /// Those of a network whose interfaces have these addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn of(
        namespace: &Namespace,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> io::Result<Self> {
        let cookie = namespace.inside(sys::network_namespace_cookie)?;
        let network = program::Network::new(cookie, addresses);
        let cgroup = File::open(CONTAINERS)?;
        let links = HOOKS.map(|(hook, family, moment)| {
            let hook = ProgramKind::SocketAddress(hook);
            let program = sys::load_program(hook, &network.program(family, moment))?;
            sys::link_program(cgroup.as_fd(), program.as_fd(), hook)
        });
        Ok(Self {
            _links: links.into_iter().collect::<io::Result<_>>()?,
        })
    }
}
