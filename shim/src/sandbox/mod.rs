//! One virtual machine with what belongs to it on the host: folder, daemon, VMM, agent.
//!
//! ```text
//! boot: folder and mounts ─▶ hull-vmm, virtiofsd ─▶ boot request ─▶ agent dials ─▶ Hello ─▶ Sandbox
//! end:  the agent answers Shutdown ─▶ hull-vmm ends ─▶ virtiofsd ends ─▶ unmounted, removed
//! ```
//! A boot that fails anywhere ends as a running sandbox does. Whatever is over first (VMM, daemon,
//! the agent's connection) ends the whole: [`Gone`] has the reason, the VMM is stopped and no
//! connection is waited for any more.

mod assets;
mod boot;
mod shutdown;

use std::sync::Arc;

use agent_protocol::AgentClient;

pub use assets::{AssetError, CMDLINE};
pub use boot::{BootError, Plan};

use crate::disks::Disks;
use crate::memory::Memory;
#[cfg(test)]
use crate::memory::Sizes;
use crate::network::{Cards, Network};
use crate::ports::Ports;
use crate::share::Share;
use crate::spawn::Account;
use crate::state_dir::StateDir;
use crate::supervise::{Gone, Supervised};
use crate::vmm_process::Control;

/// A virtual machine whose agent answers.
pub struct Sandbox {
    /// Its folder on the host.
    pub state: StateDir,
    /// What the guest is shown of the host's files.
    pub share: Arc<Share>,
    control: Control,
    vmm: Supervised,
    fs_daemon: Supervised,
    /// Tells when the machine is over, and why.
    pub gone: Gone,
    /// Where the guest's connections arrive.
    pub ports: Arc<Ports>,
    /// The agent.
    pub agent: AgentClient,
    /// Its network cards.
    pub cards: Cards,
    /// Its disks.
    pub disks: Disks,
    /// Its memory.
    pub memory: Memory,
    /// What the host counts its processes under: what its first container's configuration says of it.
    pub account: Account,
    /// The network that the VMM is in: that of its first container.
    pub network: Network,
}

impl Sandbox {
    /// Pid of the VMM.
    #[cfg(test)]
    pub(crate) fn pid(&self) -> u32 {
        self.vmm.pid
    }

    /// A sandbox of an agent that a test made, and of two processes that do nothing.
    #[cfg(test)]
    pub(crate) fn of_test(state: StateDir, control: Control, agent: AgentClient) -> Self {
        let idle = || {
            let mut command = tokio::process::Command::new("sleep");
            let child = command.arg("1000").kill_on_drop(true).spawn();
            Supervised::new("idle", child.expect("sleep is installed"))
        };
        let vmm = idle();
        let ports: Arc<Ports> = Arc::default();
        let cards = Cards::new(control.clone(), agent.clone(), Arc::clone(&ports), 1);
        let network = cards.network_of(vmm.pid).expect("the process lives");
        let sizes = Sizes::new(512, Some(4096));
        let memory = Memory::of(sizes, control.clone(), agent.clone());
        let disks = Disks::of("", &[], 0, control.clone(), agent.clone());
        Self {
            disks,
            account: Account::default(),
            share: Arc::new(Share::at(&state)),
            state,
            control,
            vmm,
            fs_daemon: idle(),
            gone: Gone::default(),
            ports,
            agent,
            cards,
            memory,
            network,
        }
    }
}
