//! What the tests from outside stand on: the host they run on, containers through `ctr`, of an
//! image or of a bundle, virtual machines through `hull-vmm`, and the check that nothing is left
//! behind.
//!
//! The tests themselves are in `integration/`. They run in the test host (`tests/integration/run`).

mod bundle;
mod command;
mod container;
mod host;
mod initramfs;
mod leftovers;
mod process;
mod systemd;
mod tap;
mod trace;
mod vm;
pub mod wait;

pub use bundle::Bundle;
pub use command::{Finished, Running, command};
pub use container::{Container, IMAGE};
pub use host::{Hidden, Host};
pub use initramfs::Initramfs;
pub use process::Process;
pub use systemd::Systemd;
pub use tap::Tap;
pub use trace::{AttachedTrace, Trace};
pub use vm::{Machine, Vm};

/// Name under which containerd knows Hull.
pub const RUNTIME: &str = "io.containerd.hull.v2";
