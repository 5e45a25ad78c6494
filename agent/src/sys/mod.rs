//! The system calls that Rust cannot check, behind signatures that it can.

mod bpf;
mod clock;
mod descriptors;
mod keys;
mod network;
mod process;
#[cfg(feature = "seccomp")]
mod seccomp;

pub use self::bpf::{ProgramKind, attach_program, link_program, load_program};
pub use self::clock::{slew_clock, step_clock};
pub use self::descriptors::{receive_fd, set_window_size, watch};
pub use self::keys::{Finder, join_session_keyring};
pub use self::network::{
    Channels, bring_up_loopback, channels, network_namespace_cookie, set_channels,
};
pub use self::process::{fork, kill};
#[cfg(feature = "seccomp")]
pub use self::seccomp::load_seccomp_filter;
