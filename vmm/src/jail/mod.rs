//! The jail: what a guest that has taken over this process can do with it, which is little.
//!
//! ```text
//! born (shim): own pid and network namespaces ─▶ enter: descriptors, limits, empty root, own user,
//!   no capabilities, Landlock ─▶ boot request … build ─▶ each thread: its filter ─▶ guest runs
//! ```
//! [`enter`] comes before the first byte that anyone sends, while the process has one thread; what
//! has to be so at its birth is the shim's part. [`Filters::confine`] comes on each thread before it
//! does anything for the guest. docs/security.md says what each measure holds, and what does not.
//!
//! KVM asks for nothing but the descriptor and the address space it was opened with, so a process
//! with no rights at all can go on using it.

#[cfg(test)]
mod tests;

#[cfg_attr(not(test), expect(dead_code, reason = "build.rs compiles it"))]
mod filter_list;
mod landlock;
mod limits;
mod namespaces;
mod privileges;
mod seccomp;

use std::io;

pub use seccomp::{Filters, Thread};

/// What the jail of one sandbox is made from.
#[derive(Debug, Clone, Copy)]
pub struct Jail {
    /// User and group that no other sandbox has; not 0.
    pub uid: u32,
    /// Nothing but this process may run on a core beside its threads (core-scheduling.rst).
    pub core_scheduling: bool,
}

/// Why the jail could not be entered; then no guest runs.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Started by something else than a shim.
    #[error(
        "hull-vmm is process {0} and not the first of a pid namespace, as its starter has to make it"
    )]
    NotFirst(i32),
    /// One step.
    #[error("enter the jail: {step}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// User namespaces are switched off.
    #[error("enter the jail: make a user namespace; is the sysctl user.max_user_namespaces 0?")]
    UserNamespace(#[source] io::Error),
    /// Asked for, but not there.
    #[error(
        "this kernel has no core scheduling (CONFIG_SCHED_CORE); configure core_scheduling = false"
    )]
    CoreScheduling(#[source] io::Error),
    /// Landlock, on a kernel that has it.
    #[error("enter the jail: give up the file system with Landlock")]
    Landlock(#[source] ::landlock::RulesetError),
}

/// Gives up everything but the inherited standard streams and the descriptor `control`. The process
/// has one thread and root's rights, and loses the latter.
///
/// # Errors
/// When the kernel refuses any of it.
pub fn enter(jail: &Jail, control: i32) -> Result<Filters, JailError> {
    privileges::be_first_of_namespace()?;
    limits::close_all_but(control)?;
    limits::set()?;
    if jail.core_scheduling {
        limits::share_no_core()?;
    }
    let own = namespaces::open_own_entry()?;
    namespaces::enter_empty_root()?;
    privileges::become_user(jail.uid)?;
    namespaces::enter_user_namespace(&own, jail.uid)?;
    drop(own);
    privileges::drop_all()?;
    landlock::restrict()?;
    Filters::prepare()
}

/// Names the step that an error came from.
fn step<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::Step {
        step,
        source: source.into(),
    }
}
