//! What a machine is made of on the host: files, and its kernel's command line.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::config::Config;
use crate::network::{CARDS, VHOST_NET};
use crate::state_dir::{StateDir, StateError};

/// Kernel words that every guest is given (kernel-parameters.txt): where the root is; that a panic
/// resets and a reset ends the machine; what a guest without firmware need not test or wait for; that
/// memory is used as soon as it is plugged, for anything; and that the agent brings processors online.
pub const CMDLINE: &str = "root=/dev/pmem0 rootflags=dax ro rootfstype=erofs init=/sbin/hull-agent \
    quiet reboot=k panic=-1 tsc=reliable no_timer_check random.trust_cpu=on cryptomgr.notests \
    rcupdate.rcu_expedited=1 memhp_default_state=online maxcpus=1";

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// No virtualization.
    #[error("open /dev/kvm")]
    Kvm(#[source] io::Error),
    /// What the configuration has move frames.
    #[error("open {VHOST_NET}, which \"vhost_net\" asks for")]
    VhostNet(#[source] io::Error),
    /// The guest's kernel or image.
    #[error("open guest {key} {}", path.display())]
    File {
        /// The configuration's key for it.
        key: &'static str,
        /// Where it was expected.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What a machine is made of, open.
pub(super) struct Assets {
    /// `/dev/kvm`.
    pub(super) kvm: OwnedFd,
    /// The guest's kernel.
    pub(super) kernel: OwnedFd,
    /// The guest's root.
    pub(super) image: OwnedFd,
    /// `/dev/vhost-net`, once for each network card, if it is to be used.
    pub(super) vhost: Vec<OwnedFd>,
}

impl Assets {
    /// Opens them all.
    ///
    /// # Errors
    /// All of `AssetError`.
    pub(super) fn open(config: &Config) -> Result<Self, AssetError> {
        let open = |key, path: &PathBuf| {
            File::open(path)
                .map(OwnedFd::from)
                .map_err(|source| AssetError::File {
                    key,
                    path: path.clone(),
                    source,
                })
        };
        let device = |path| -> io::Result<OwnedFd> {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            Ok(file.into())
        };
        let cards = if config.vhost_net { CARDS } else { 0 };
        let vhost = (0..cards).map(|_| device(VHOST_NET).map_err(AssetError::VhostNet));
        Ok(Self {
            kvm: device("/dev/kvm").map_err(AssetError::Kvm)?,
            vhost: vhost.collect::<Result<_, _>>()?,
            kernel: open("kernel", &config.kernel)?,
            image: open("image", &config.image)?,
        })
    }
}

/// The kernel's command line.
pub(super) fn cmdline(debug_console: bool) -> String {
    // Without a console the driver need not look for one.
    let console = if debug_console {
        "console=ttyS0 loglevel=7"
    } else {
        "8250.nr_uarts=0"
    };
    format!("{CMDLINE} {console}")
}

/// The file that the serial console is written to, if the guest has one.
pub(super) fn console(config: &Config, state: &StateDir) -> Result<Option<OwnedFd>, StateError> {
    if !config.debug_console {
        return Ok(None);
    }
    let path = state.path().join("console.log");
    match File::create(&path) {
        Ok(file) => Ok(Some(file.into())),
        Err(source) => Err(StateError::Make { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_a_console_only_when_it_is_asked_for() {
        assert!(!cmdline(false).contains("console="));
        assert!(cmdline(true).contains("console=ttyS0"));
        assert!(cmdline(false).ends_with(" 8250.nr_uarts=0"));
    }
}
