//! The end of a sandbox, in the reverse order of its boot.

use std::time::Duration;

use log::warn;

use super::Sandbox;
use crate::error::TaskError;
use crate::state_dir::{StateDir, StateError};
use crate::supervise::Supervised;
use crate::vmm_process::Control;

/// How long a guest may take to write back what it holds.
const GUEST_PATIENCE: Duration = Duration::from_secs(10);

/// How long the VMM may take to end once it is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// How long virtiofsd may take to end once the VMM is gone: it does so by itself, and the process it
/// keeps in namespaces of its own with it.
const DAEMON_PATIENCE: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Ends a machine whose guest does not do what it is told. What was made for it stays for
    /// [`Sandbox::shut_down`].
    pub async fn give_up(&self, reason: String) {
        self.gone.tell(reason);
        self.control.stop();
        self.vmm.end(STOP_PATIENCE).await;
    }

    /// Ends the machine, in order if its agent still answers, and removes everything of it.
    ///
    /// # Errors
    /// When something stays mounted.
    pub async fn shut_down(&self) -> Result<(), StateError> {
        if !self.gone.is_told() {
            let context = ttrpc::context::with_duration(GUEST_PATIENCE);
            let nothing = agent_protocol::Empty::new();
            if let Err(e) = self.agent.shutdown(context, &nothing).await {
                warn!("the agent does not shut down: {}", TaskError::from(e));
            }
        }
        // Once the agent has answered, the guest holds nothing that matters: no need to wait for it.
        let vmm = Some((&self.vmm, &self.control));
        end(vmm, Some(&self.fs_daemon), &self.state).await
    }
}

/// Ends whatever there is of a sandbox.
pub(super) async fn end(
    vmm: Option<(&Supervised, &Control)>,
    fs_daemon: Option<&Supervised>,
    state: &StateDir,
) -> Result<(), StateError> {
    if let Some((vmm, control)) = vmm {
        control.stop();
        vmm.end(STOP_PATIENCE).await;
    }
    if let Some(daemon) = fs_daemon {
        daemon.end(DAEMON_PATIENCE).await;
    }
    state.remove()
}
