//! What the guest's kernel finds in memory when it starts, but for what depends on the architecture.

pub mod cmdline;
pub mod initrd;
