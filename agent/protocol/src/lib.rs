//! The protocol between the shim and `hull-agent`: messages, client and server of one ttrpc service
//! (`proto/agent.proto`), and the vsock ports.
//!
//! ```text
//! guest (CID 3)                                host (CID 2)
//!   hull-agent ── connects ─▶ RPC_PORT      one connection; the agent is the ttrpc server on it
//!   hull-agent ── connects ─▶ a stream port one connection for each standard stream or
//!                                           forward, and one for questions about names; the
//!                                           shim named the port in its request
//!   hull-agent ── connects ─▶ LOG_PORT      its log, a line each, for the shim's own
//! ```

pub mod datagram;
pub mod question;

use std::path::{Path, PathBuf};

// The generated code answers for itself.
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

pub use generated::agent::*;
pub use generated::agent_ttrpc::{Agent, AgentClient, create_agent};

/// Raised with every change that an older peer would misread.
pub const PROTOCOL_VERSION: u32 = 8;

/// vsock address of the host (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// Host port on which the shim expects the agent's one ttrpc connection.
pub const RPC_PORT: u32 = 1;

/// Host port that takes the agent's log, UTF-8 lines.
pub const LOG_PORT: u32 = 2;

/// Lowest host port of streams. Each has one of its own, drawn at random, for one connection.
pub const FIRST_STREAM_PORT: u32 = 1024;

/// Processes of a container that are listed, at most.
pub const MAX_PROCESSES: usize = 512;

/// Bytes of a process's command line that are told.
pub const MAX_COMMAND_LINE: usize = 4096;

/// Sockets that are told to wait for clients, at most.
pub const MAX_LISTENING: usize = 128;

/// In a network that stands for the host's own: the addresses at which the host's end of it takes what
/// is meant for addresses that both the host and the container have. Link-local (RFC 3927) and unique
/// local ones (RFC 4193, the forty bits in the middle by chance), which no network has but in a quarrel.
pub mod host_addresses {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// What all of these of IPv4 begin with, and how long that is in bits.
    pub const PREFIX: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 1, 0), 29);
    /// 127.0.0.1 of the host.
    pub const LOOPBACK: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
    /// Port 53 of [`RESOLVER_THERE`].
    pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 3);
    /// Where systemd-resolved(8) answers on its host.
    pub const RESOLVER_THERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
    /// The address that host and container have both, the first of them.
    pub const SHARED: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 4);

    /// What all of these of IPv6 begin with, and how long that is in bits.
    pub const PREFIX_V6: (Ipv6Addr, u8) =
        (Ipv6Addr::new(0xfdd3, 0x4c1e, 0x97a2, 0, 0, 0, 0, 0), 64);
    /// ::1 of the host.
    pub const LOOPBACK_V6: Ipv6Addr = Ipv6Addr::new(0xfdd3, 0x4c1e, 0x97a2, 0, 0, 0, 0, 2);
    /// The address that host and container have both, the first of them.
    pub const SHARED_V6: Ipv6Addr = Ipv6Addr::new(0xfdd3, 0x4c1e, 0x97a2, 0, 0, 0, 0, 4);
}

/// virtio-fs tag of the sandbox's one shared directory.
pub const SHARE_TAG: &str = "hull";

/// Where the agent is asked to mount it.
pub const SHARE_PATH: &str = "/run/hull/share";

/// Where a guest finds its disks: where udev would put them.
pub const DISKS: &str = "/dev/disk/by-id";

/// Where a guest finds the disk with a serial number.
#[must_use]
pub fn disk_path(serial: &str) -> PathBuf {
    Path::new(DISKS).join(format!("virtio-{serial}"))
}
