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
pub const PROTOCOL_VERSION: u32 = 6;

/// vsock address of the host (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// Host port on which the shim expects the agent's one ttrpc connection.
pub const RPC_PORT: u32 = 1;

/// Host port that takes the agent's log, UTF-8 lines.
pub const LOG_PORT: u32 = 2;

/// First host port for standard streams; the shim counts up from it, and uses each port once.
pub const FIRST_STREAM_PORT: u32 = 1024;

/// Processes of a container that are listed, at most.
pub const MAX_PROCESSES: usize = 512;

/// Bytes of a process's command line that are told.
pub const MAX_COMMAND_LINE: usize = 4096;

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
