//! The control protocol between `containerd-shim-hull-v2` and `hull-vmm`.
//!
//! One `SOCK_SEQPACKET` socket, made by the shim and inherited by the VMM, carries everything: each
//! packet is one JSON message and the descriptors that belong to it (`SCM_RIGHTS`). The VMM opens
//! nothing itself: what it may touch, it was handed.
//!
//! ```text
//! shim                                              hull-vmm
//!   │ ── Boot { VmConfig } + kvm, kernel, disks … ──▶ │   once, first
//!   │ ◀──────────────────────────────────── Started ─ │
//!   │ ◀───────────────────── Dialled { port } + socket │   the guest connected to CID 2, `port`
//!   │ ── Connect { port } + socket ─────────────────▶ │   splice the socket to a guest's port
//!   │ ── Counters ──────────────────────────────────▶ │
//!   │ ◀───────────────────────────── Counters { … } ─ │
//!   │ ── Stop ──────────────────────────────────────▶ │
//!   │ ◀───────────────────────── Exited { reason, … } ─ │   last; the process ends after it
//! ```
//!
//! When either end closes the socket the other treats the VM as over: a VMM whose shim died exits.

mod channel;
mod config;
mod counters;
mod message;

pub use channel::{Channel, ReceiveError, SendError};
pub use config::{
    DescriptorError, Disk, FdIndex, MAX_PAIRS, MacAddress, MacAddressError, Nic, PMEM_ALIGNMENT,
    RateLimit, Share, TokenBucket, VmConfig,
};
pub use counters::{Counters, DeviceCounters};
pub use message::{Event, ExitReason, Request};
