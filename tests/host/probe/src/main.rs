//! Tells whether this machine's KVM runs a Linux guest: prints one line and exits with 0 if so.
//!
//! A `/dev/kvm` that can be opened, and that answers every ioctl, can still be one that interprets
//! the guest's kernel, slowly and not all of it. So the probe runs a guest that does what a kernel
//! does first: it restores extended state (XRSTOR), takes an exception (INT3) and computes.

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
mod guest;

#[cfg(target_arch = "x86_64")]
fn verdict() -> Result<String, String> {
    guest::run().map_err(|error| format!("{error:#}"))
}

#[cfg(not(target_arch = "x86_64"))]
fn verdict() -> Result<String, String> {
    Err("the probe knows x86_64 alone".to_owned())
}

fn main() -> ExitCode {
    match verdict() {
        Ok(how) => {
            println!("usable: {how}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("unusable: {why}");
            ExitCode::FAILURE
        }
    }
}
