//! From a folder with a container's files to a machine whose agent answers.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{
    AgentClient, HelloRequest, LOG_PORT, PROTOCOL_VERSION, RPC_PORT, SHARE_PATH, SHARE_TAG,
};
use log::{info, warn};
use tokio::process::Child;
use ttrpc::r#async::transport::Socket;
use vmm_control::{Disk, Event, RateLimit, SendError, VmConfig};

use super::assets::{self, AssetError, Assets};
use super::{Sandbox, shutdown};
use crate::clock;
use crate::config::Config;
use crate::disks::Disks;
use crate::error::chain;
use crate::fs_daemon::{self, FsDaemonError};
use crate::log_lines::{self, LastLine, cleaned};
use crate::memory::{Memory, Sizes};
use crate::network::{self, Cards, Network, NetworkError};
use crate::ports::{Expected, Ports};
use crate::share::Share;
use crate::spawn::Account;
use crate::state_dir::{StateDir, StateError};
use crate::supervise::{Gone, Supervised};
use crate::users::{self, UserError};
use crate::vmm_process::{self, Control, Jail, VmmError, VmmEvents};

/// How long a guest may take until its agent answers. A second is plenty; an emulated host is slow.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How long the VMM's own reason for its end is waited for, when something else has noticed it.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// Most devices of which is logged what they have counted: no machine has more.
const MOST_DEVICES: usize = 64;

/// Why a sandbox did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Its folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// What it is made of.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A user of its own.
    #[error(transparent)]
    User(#[from] UserError),
    /// The file-system daemon.
    #[error(transparent)]
    FsDaemon(#[from] FsDaemonError),
    /// The VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Its network namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The machine ended before its agent answered.
    #[error("boot the virtual machine: {0}")]
    Ended(String),
    /// The agent does not answer.
    #[error("boot the virtual machine: its agent did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The agent answers with an error.
    #[error("greet the guest's agent")]
    Hello(#[source] ttrpc::Error),
}

impl BootError {
    /// What to do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let install = |key: &str| {
            format!(
                "install it or set \"{key}\" in {}",
                crate::config::path().display()
            )
        };
        match self {
            Self::Asset(AssetError::Kvm(_) | AssetError::VhostNet(_)) => {
                Some("run \"hull check\"".to_owned())
            }
            Self::Asset(AssetError::File { key, .. }) => Some(install(key)),
            Self::Vmm(VmmError::Start { .. }) => Some(install("vmm")),
            Self::FsDaemon(FsDaemonError::Start { .. }) => Some(install("virtiofsd")),
            _ => None,
        }
    }
}

/// What a sandbox is made from.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Where everything is.
    pub config: &'a Config,
    /// The sandbox's folder.
    pub state: StateDir,
    /// Its first container.
    pub id: &'a str,
    /// What the guest is shown, in place.
    pub share: Arc<Share>,
    /// Its memory.
    pub memory: Sizes,
    /// Its disks but for the guest's image: its first container's block devices.
    pub disks: Vec<Disk<OwnedFd>>,
    /// What the host is to count its processes under.
    pub account: Account,
    /// The network namespace to be in; a new one without.
    pub network: Option<&'a Path>,
}

impl Sandbox {
    /// Boots a machine. If that fails, nothing is left of it, its folder included.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn boot(plan: Plan<'_>) -> Result<Self, BootError> {
        let mut booting = Booting {
            state: plan.state,
            ports: Arc::default(),
            gone: Gone::default(),
            account: plan.account,
            fs_daemon: None,
            vmm: None,
        };
        let serials: Vec<_> = plan.disks.iter().map(|disk| disk.serial.clone()).collect();
        let booted = booting
            .boot(plan.config, &plan.memory, plan.disks, plan.network)
            .await;
        match booted {
            Ok((agent, cards, network)) => {
                let (control, spare) = (booting.control(), plan.config.spare_disks);
                let disks = Disks::of(plan.id, &serials, spare, control, agent.clone());
                let (share, memory) = (plan.share, plan.memory);
                Ok(booting.finish(share, disks, memory, agent, cards, network))
            }
            Err(error) => {
                booting.undo().await;
                Err(error)
            }
        }
    }
}

/// A sandbox that is coming up: what there is of it so far.
struct Booting {
    state: StateDir,
    ports: Arc<Ports>,
    gone: Gone,
    account: Account,
    fs_daemon: Option<Supervised>,
    vmm: Option<(Supervised, Control)>,
}

impl Booting {
    async fn boot(
        &mut self,
        config: &Config,
        memory: &Sizes,
        volumes: Vec<Disk<OwnedFd>>,
        network: Option<&Path>,
    ) -> Result<(AgentClient, Cards, Network), BootError> {
        // Everything that can be missing is looked for before anything is started.
        let assets = Assets::open(config)?;
        let serial = assets::console(config, &self.state)?;
        let rpc = self.ports.expect_at(RPC_PORT);
        tokio::spawn(log_agent(self.ports.expect_at(LOG_PORT)));

        let jail = Jail {
            uid: users::claim(&config.state, &self.state, &config.jail.users())?,
            core_scheduling: config.jail.core_scheduling,
        };
        let (vmm, control, events) = vmm_process::start(&config.vmm, network, jail, &self.account)?;
        let vmm = self.supervise("hull-vmm", vmm)?;
        let vmm_ended = vmm.ended();
        self.vmm = Some((vmm, control.clone()));
        let (daemon, connection) = fs_daemon::start(&config.virtiofsd, &self.state, &self.account)?;
        let daemon = self.supervise("virtiofsd", daemon)?;
        let daemon_ended = daemon.ended();
        self.fs_daemon = Some(daemon);

        let pairs = network::pairs(config.vcpus(), config.vhost_net);
        let machine = VmConfig {
            kvm: assets.kvm,
            kernel: assets.kernel,
            initrd: None,
            cmdline: assets::cmdline(config.debug_console),
            vcpus: config.vcpus(),
            memory_mib: config.memory_mib,
            serial,
            // The kernel is told that its root is the first.
            pmems: vec![assets.image],
            disks: volumes,
            nics: network::cards(pairs, assets.vhost),
            shares: vec![vmm_control::Share {
                daemon: connection,
                tag: SHARE_TAG.into(),
            }],
            spare_disks: config.spare_disks,
            balloon: true,
            hotplug_mib: memory.pluggable(),
            entropy_limit: RateLimit::default(),
        };
        // The guest plugs the memory while it boots.
        let asked = control
            .boot(machine)
            .and_then(|()| control.set_memory(memory.target()));
        match asked {
            // Why it is gone is told below.
            Ok(()) | Err(SendError::Closed) => {}
            Err(e) => return Err(VmmError::Boot(e).into()),
        }

        let (ports, gone) = (Arc::clone(&self.ports), self.gone.clone());
        tokio::spawn(async move { gone.tell(serve(events, &ports, vmm_ended).await) });
        let gone = self.gone.clone();
        tokio::spawn(async move {
            let ended = daemon_ended.await;
            // It ends with the VMM as well, whose reason is then the better one.
            tokio::time::sleep(REASON_PATIENCE).await;
            gone.tell(ended);
        });
        let (ports, gone) = (Arc::clone(&self.ports), self.gone.clone());
        tokio::spawn(async move {
            gone.reason().await;
            control.stop();
            ports.close();
        });
        let agent = self.greet(rpc, config).await?;
        let (vmm, control) = self.vmm.as_ref().expect("started above");
        let ports = Arc::clone(&self.ports);
        let cards = Cards::new(control.clone(), agent.clone(), ports, pairs);
        let network = cards.network_of(vmm.pid)?;
        Ok((agent, cards, network))
    }

    /// Waits for the agent and says hello.
    async fn greet(&self, rpc: Expected, config: &Config) -> Result<AgentClient, BootError> {
        let connected = tokio::time::timeout(BOOT_PATIENCE, rpc.connected()).await;
        let socket = match connected {
            Ok(Ok(socket)) => socket,
            // Nobody waits for the guest any more, so there is a reason.
            Ok(Err(_)) => return Err(BootError::Ended(self.why(config).await)),
            Err(_) => return Err(BootError::Silent(BOOT_PATIENCE)),
        };
        let agent = AgentClient::new(ttrpc::r#async::Client::new(Socket::new(socket)));
        let hello = HelloRequest {
            version: PROTOCOL_VERSION,
            shares: vec![agent_protocol::Share {
                tag: SHARE_TAG.into(),
                path: SHARE_PATH.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(BOOT_PATIENCE);
        let answer = agent.hello(context, &hello).await;
        let answer = answer.map_err(BootError::Hello)?;
        info!(
            "guest kernel {}, agent {}",
            answer.kernel_release, answer.agent_version
        );
        Ok(agent)
    }

    /// Notes a process on disk, so that it is found after a crash, and supervises it.
    fn supervise(&self, name: &'static str, child: Child) -> Result<Supervised, StateError> {
        let supervised = Supervised::new(name, child);
        self.state.note_process(supervised.pid)?;
        Ok(supervised)
    }

    /// Why the machine ended, with what VMM and guest said last.
    async fn why(&self, config: &Config) -> String {
        let mut reason = self.gone.reason().await;
        let said = self.vmm.as_ref().map(|(vmm, _)| vmm.last_line.get());
        let console = last_line(&self.state.path().join("console.log"));
        for line in said.into_iter().chain(console) {
            if !line.is_empty() && !reason.contains(&line) {
                reason = format!("{reason} ({line})");
            }
        }
        if !config.debug_console {
            reason.push_str(
                "; \"debug_console = true\" in the configuration shows the guest's own words",
            );
        }
        reason
    }

    fn finish(
        self,
        share: Arc<Share>,
        disks: Disks,
        sizes: Sizes,
        agent: AgentClient,
        cards: Cards,
        network: Network,
    ) -> Sandbox {
        let (vmm, control) = self.vmm.expect("booted, so started");
        let memory = Memory::of(sizes, control.clone(), agent.clone());
        tokio::spawn(clock::follow(agent.clone(), self.gone.clone()));
        Sandbox {
            state: self.state,
            share,
            control,
            vmm,
            fs_daemon: self.fs_daemon.expect("booted, so started"),
            gone: self.gone,
            ports: self.ports,
            agent,
            cards,
            disks,
            memory,
            account: self.account,
            network,
        }
    }

    /// The VMM's, once it was started.
    fn control(&self) -> Control {
        let (_, control) = self.vmm.as_ref().expect("booted, so started");
        control.clone()
    }

    async fn undo(self) {
        let vmm = self.vmm.as_ref().map(|(vmm, control)| (vmm, control));
        if let Err(e) = shutdown::end(vmm, self.fs_daemon.as_ref(), &self.state).await {
            warn!("clean up after a failed boot: {}", chain(&e));
        }
    }
}

fn last_line(path: &Path) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(cleaned(line.trim()))
}

/// Hands the guest's connections to who waits for them, until the machine is over; tells why it is.
async fn serve(
    mut events: VmmEvents,
    ports: &Ports,
    vmm_ended: impl Future<Output = String>,
) -> String {
    while let Some(event) = events.recv().await {
        match event {
            Ok((Event::Dialled { port }, fds)) => {
                for socket in fds.into_iter().take(1) {
                    ports.deliver(port, socket);
                }
            }
            // Counters come when they are asked for, and nobody here asks.
            Ok((Event::Started | Event::Counters(_), _)) => {}
            // A VMM that was taken over says what it likes, here and in what is no message.
            Ok((
                Event::Exited {
                    reason,
                    mut counters,
                },
                _,
            )) => {
                let reason = cleaned(&reason.to_string());
                counters.devices.truncate(MOST_DEVICES);
                info!("the machine is over: {reason}; {counters:?}");
                return reason;
            }
            Err(e) => {
                let ended = tokio::time::timeout(REASON_PATIENCE, vmm_ended).await;
                return ended.unwrap_or_else(|_| cleaned(&chain(&e)));
            }
        }
    }
    "nobody listens to hull-vmm".to_owned()
}

/// The agent's log becomes the shim's.
async fn log_agent(expected: Expected) {
    if let Ok(socket) = expected.connected().await {
        log_lines::copy("agent", socket, &LastLine::default()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn not_found() -> io::Error {
        io::Error::from_raw_os_error(2)
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let asset = BootError::Asset(AssetError::File {
            key: "kernel",
            path: "/k".into(),
            source: not_found(),
        });
        let kvm = BootError::Asset(AssetError::Kvm(not_found()));
        let start = BootError::Vmm(VmmError::Start {
            program: "/v".into(),
            source: not_found(),
        });
        for (error, path, hint) in [
            (asset, "/k", "set \"kernel\""),
            (start, "/v", "set \"vmm\""),
            (kvm, "/dev/kvm", "hull check"),
        ] {
            let text = chain(&error);
            assert!(
                text.contains(path) && text.ends_with("No such file or directory (os error 2)"),
                "{text}"
            );
            assert!(error.hint().unwrap().contains(hint), "{error}");
        }
    }

    #[tokio::test]
    async fn the_vmms_own_reason_is_the_machines_and_without_one_its_exit_status() {
        use vmm_control::{Counters, ExitReason, ReceiveError};

        let ports = Ports::default();
        let never = std::future::pending::<String>();
        let (said, events) = tokio::sync::mpsc::channel(2);
        let exited = Event::Exited {
            reason: ExitReason::Failed("no vCPU".into()),
            counters: Counters::default(),
        };
        said.send(Ok((exited, Vec::new()))).await.unwrap();
        assert_eq!(serve(events, &ports, never).await, "no vCPU");

        let (said, events) = tokio::sync::mpsc::channel(2);
        said.send(Err(ReceiveError::Closed)).await.unwrap();
        let ended = async { "hull-vmm ended: signal: 9".to_owned() };
        assert_eq!(
            serve(events, &ports, ended).await,
            "hull-vmm ended: signal: 9"
        );
    }

    #[tokio::test]
    async fn a_reason_is_one_line_that_can_be_shown() {
        use vmm_control::{Counters, ExitReason};

        let (said, events) = tokio::sync::mpsc::channel(1);
        let exited = Event::Exited {
            reason: ExitReason::Failed(format!("\x1b[2J\nroot logged in{}", "x".repeat(60_000))),
            counters: Counters::default(),
        };
        said.send(Ok((exited, Vec::new()))).await.unwrap();
        let reason = serve(events, &Ports::default(), std::future::pending()).await;
        assert!(reason.starts_with("\u{fffd}[2J\u{fffd}root"), "{reason}");
        assert!(reason.len() < 4096, "{}", reason.len());
    }
}
