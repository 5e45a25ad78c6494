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

use std::io;
use std::net::IpAddr;

use self::program::HOOKS;
use super::Namespace;
use crate::socket_programs::SocketPrograms;
use crate::sys;

/// Shares the addresses of a network whose interfaces have these, as long as the programs are there.
///
/// # Errors
/// What the kernel says.
pub(super) fn share(
    namespace: &Namespace,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> io::Result<SocketPrograms> {
    let cookie = namespace.inside(sys::network_namespace_cookie)?;
    let network = program::Network::new(cookie, addresses);
    SocketPrograms::install(
        HOOKS.map(|(hook, family, moment)| (hook, network.program(family, moment))),
    )
}
