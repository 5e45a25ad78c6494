//! What depends on the processor's architecture: addresses, tables, registers. Each architecture is
//! a folder with the same names in it; nobody else asks which one it is.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
