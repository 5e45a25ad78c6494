//! Hull's virtual machine monitor: one process, one virtual machine.
//!
//! `main.rs` is the program; [`machine`] is where it all comes together (docs/vmm.md).

pub mod arch;
pub mod backend;
pub mod bus;
pub mod event_loop;
pub mod jail;
pub mod kvm;
pub mod legacy;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod rate_limit;
pub mod report;
pub mod virtio;
