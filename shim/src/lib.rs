//! The host's side of Hull: what `containerd-shim-hull-v2` and `hull` are made of.
//!
//! ```text
//! containerd ── ttrpc ──▶ task_service ──▶ runtime ──▶ sandbox ──▶ vmm_process ── control ──▶ hull-vmm
//!       ◀── events ────────────────────────────┤          ├──────▶ fs_daemon ──▶ virtiofsd
//!                                container ◀───┘          └─ agent ── ttrpc over vsock ──▶ hull-agent
//! ```
//! The shim is root on the host: whatever comes from a bundle or from the guest is checked here.

pub mod actions;
pub mod annotations;
pub mod bind_mount;
pub mod block_volumes;
pub mod bootstrap;
pub mod bundle;
pub mod check;
pub mod cleanup;
pub mod clock;
pub mod command_line;
pub mod config;
pub mod container;
pub mod disks;
pub mod error;
pub mod events;
pub mod fs_daemon;
pub mod grouping;
pub mod hooks;
pub mod host_cgroup;
pub mod idmap;
pub mod info;
pub mod instance;
pub mod log_lines;
pub mod memory;
pub mod mount_points;
pub mod network;
pub mod oci;
pub mod oom_score;
pub mod open_files;
pub mod port_forward;
pub mod ports;
pub mod process_identity;
pub mod removal;
pub mod rootfs;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub mod share;
pub mod socket;
pub mod spawn;
pub mod stand_ins;
pub mod state_dir;
pub mod stats;
pub mod stdio;
pub mod supervise;
pub mod task_service;
pub mod users;
pub mod vmm_process;
