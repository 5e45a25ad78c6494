//! One virtual machine with what belongs to it on the host: folder, daemon, VMM, agent.
//!
//! ```text
//! boot: folder and mounts ─▶ hull-vmm, virtiofsd ─▶ boot request ─▶ agent dials ─▶ Hello ─▶ Sandbox
//! end:  Shutdown to the agent ─▶ hull-vmm ends ─▶ virtiofsd ends ─▶ unmounted, removed
//! ```
//! A boot that fails anywhere ends as a running sandbox does. Whatever is over first (VMM, daemon,
//! the agent's connection) ends the whole: [`Gone`] has the reason, the VMM is stopped and no
//! connection is waited for any more.

mod boot;
mod shutdown;

use std::sync::Arc;

use agent_protocol::AgentClient;

pub use boot::{BootError, Plan};

use crate::ports::Ports;
use crate::state_dir::StateDir;
use crate::supervise::{Gone, Supervised};
use crate::vmm_process::Control;

/// A virtual machine whose agent answers.
pub struct Sandbox {
    state: StateDir,
    control: Control,
    vmm: Supervised,
    fs_daemon: Supervised,
    /// Tells when the machine is over, and why.
    pub gone: Gone,
    /// Where the guest's connections arrive.
    pub ports: Arc<Ports>,
    /// The agent.
    pub agent: AgentClient,
}

impl Sandbox {
    /// The pid of the VMM: a process in the sandbox's network namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vmm.pid
    }
}
