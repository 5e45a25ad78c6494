//! Create: from a bundle to a machine with a container in it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_protocol::{self as agent, SHARE_PATH};
use containerd_shim::protos::api::CreateTaskRequest;
use containerd_shim::protos::events::task as event;
use log::warn;
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use protobuf::MessageField;
use vmm_control::Disk;

use super::host_network::HostNetwork;
use super::members::Others;
use super::on_host::{OnHost, beside, stand_in};
use super::{Result, Runtime, blocking, open_streams, patience};
use crate::annotations::{self, Annotations};
use crate::block_volumes;
use crate::bundle::{self, Guest, Neighbours, Nobody};
use crate::cleanup;
use crate::config::{Config, HostPid};
use crate::container::{Container, Process};
use crate::error::{TaskError, chain};
use crate::events::TaskEvent;
use crate::grouping;
use crate::hooks::Subject;
use crate::host_cgroup::HostCgroup;
use crate::memory::Sizes;
use crate::oom_score;
use crate::port_forward::Bound;
use crate::rootfs;
use crate::sandbox::{Plan, Sandbox};
use crate::share::{self, Share};
use crate::socket;
use crate::spawn::{Account, Place};
use crate::stand_ins::{self, StandIns};
use crate::state_dir::{StateDir, StateError};
use crate::stdio::{Owner, Paths};

impl Runtime {
    /// Creates a container, in the machine that runs or in a new one; returns its pid.
    ///
    /// # Errors
    /// When it cannot be created; nothing of it is left then.
    pub async fn create(&self, request: &CreateTaskRequest) -> Result<u32> {
        let _turn = self.0.turn.lock().await;
        if self.members().container(&request.id).is_ok() {
            return Err(TaskError::Exists(format!("container {}", request.id)));
        }
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unimplemented("restoring a checkpoint"));
        }
        let joined = self.members().join();
        let created = match joined {
            Some((machine, others)) => self.join(request, &machine, &others).await,
            None if request.id == self.0.id => self.boot(request).await,
            None => Err(TaskError::Precondition(format!(
                "container {} is to join the virtual machine of {}, which is over",
                request.id, self.0.id
            ))),
        };
        if created.is_err() {
            self.members().created_not();
            if let Some(mounts) = mounts(request)
                && let Err(e) = blocking(move || rootfs::unmount(&mounts)).await
            {
                warn!("clean up after a failed create: {e}");
            }
        }
        created
    }

    /// The container is there: says so, and serves it from here on.
    pub(super) fn adopt(
        &self,
        request: &CreateTaskRequest,
        sandbox: &Sandbox,
        container: Container,
        bound: Bound,
        mut on_host: OnHost,
    ) -> u32 {
        let pid = container.init.pid();
        if let Some(stand_ins) = &on_host.stand_ins {
            self.watch_stand_in(&container.id, stand_ins);
        }
        let (id, agent, ports) = (&container.id, &sandbox.agent, &sandbox.ports);
        on_host.forwards = bound.serve(id, agent, ports);
        self.members().add(container, on_host);
        self.publish(TaskEvent::Create(created_event(request, pid)));
        pid
    }

    /// The machine is there, and watched from here on.
    pub(super) fn adopt_machine(&self, sandbox: Arc<Sandbox>) {
        if let Some(cgroup) = &sandbox.account.cgroup {
            cgroup.settle();
        }
        let (agent, gone) = (sandbox.agent.clone(), sandbox.gone.clone());
        self.members().boot(sandbox);
        self.watch(agent, gone);
    }

    /// The first container of a machine, and the machine.
    async fn boot(&self, request: &CreateTaskRequest) -> Result<u32> {
        let config = Config::load().map_err(|e| TaskError::failed(&e))?;
        let wanted = Wanted::read(request, &Nobody, config.host_pid)?;
        wanted.check_network(&config, &self.state_of(&request.id, &config)?)?;
        let disks = block_volumes::open(&wanted.guest.block_volumes);
        let disks = disks.map_err(|e| TaskError::failed(&e))?;
        let bound = wanted.bind()?;
        let path = wanted.cgroups_path.as_deref();
        let holder = || stand_ins::holder(&request.id);
        let cgroup = HostCgroup::of(path, &wanted.resources, holder).await;
        let cgroup = cgroup.map_err(|e| TaskError::failed(&e))?.map(Arc::new);
        let account = Account {
            cgroup: cgroup.clone(),
            oom_score_adj: wanted.oom_score_adj,
        };
        let booted = self.boot_in(account, request, &config, wanted, disks, bound);
        let booted = booted.await;
        if let Some(cgroup) = cgroup
            && booted.is_err()
        {
            cgroup.remove();
        }
        booted
    }

    async fn boot_in(
        &self,
        account: Account,
        request: &CreateTaskRequest,
        config: &Config,
        mut wanted: Wanted,
        disks: Vec<Disk<OwnedFd>>,
        bound: Bound,
    ) -> Result<u32> {
        let state = self.state_of(&request.id, config)?;
        self.make_folder(&request.id, &state).await?;
        let cgroup_note = (account.cgroup.as_ref()).and_then(|cgroup| cgroup.note());
        let noted = (state.note_instance(&self.0.instance))
            .and_then(|()| state.note_address(&self.0.address))
            .and_then(|()| cgroup_note.map_or(Ok(()), |cgroup| state.note_cgroup(cgroup)));
        let shared = async {
            noted.map_err(|e| TaskError::failed(&e))?;
            let share = Share::open(&state).map_err(|e| TaskError::failed(&e))?;
            let share = Arc::new(share);
            wanted.show(request, &share).await.map(|()| share)
        };
        let share = match shared.await {
            Ok(share) => share,
            Err(error) => {
                if let Err(e) = state.remove() {
                    warn!("clean up after a failed mount: {}", chain(&e));
                }
                return Err(error);
            }
        };
        // Nobody is there whose network it could be.
        let network = match &wanted.guest.network {
            bundle::Network::Own(path) => path.as_deref(),
            bundle::Network::Host | bundle::Network::Machine | bundle::Network::Of(_) => None,
        };
        let mut memory = Sizes::new(config.memory_mib, config.memory_max_mib);
        memory.limit(&request.id, wanted.memory_limit());
        let joins_host = wanted.guest.network == bundle::Network::Host;
        let plan = Plan {
            config,
            state,
            id: &request.id,
            share,
            memory,
            disks,
            account,
            network,
        };
        let sandbox = Sandbox::boot(plan).await.map_err(|e| match e.hint() {
            Some(hint) => TaskError::Failed(format!("{}; {hint}", chain(&e))),
            None => TaskError::failed(&e),
        })?;
        let sandbox = Arc::new(sandbox);
        let network = sandbox.network.clone();
        let created = async {
            let mut host_network = None;
            if joins_host {
                host_network = Some(HostNetwork::start(&sandbox, &network, config).await?);
            }
            let place = Place::In(network.namespace());
            let stand_ins = stand_in(&sandbox, &request.id, &place).await?;
            let mut on_host = OnHost {
                stand_ins: Some(Arc::clone(&stand_ins)),
                host_network,
                network: Some(network.clone()),
                ..OnHost::default()
            };
            on_host.allow(wanted.privileged_ports);
            let container = self.create_in(&sandbox, request, wanted, &stand_ins);
            Ok((container.await?, on_host))
        };
        match created.await {
            Ok((container, on_host)) => {
                let pid = self.adopt(request, &sandbox, container, bound, on_host);
                self.adopt_machine(sandbox);
                Ok(pid)
            }
            Err(error) => {
                if let Err(e) = sandbox.shut_down().await {
                    warn!("clean up after a failed create: {}", chain(&e));
                }
                Err(error)
            }
        }
    }

    /// Where the machine is noted whose first container has this name.
    fn state_of(&self, id: &str, config: &Config) -> Result<StateDir> {
        let state = StateDir::at(&config.state, &self.0.namespace, id);
        state.map_err(|e| TaskError::failed(&e))
    }

    /// Makes the folder of a machine. One that a shim has left which was killed, and that nobody has cleaned up after, is
    /// cleaned up: else there would never be a container of that name again.
    async fn make_folder(&self, id: &str, state: &StateDir) -> Result<()> {
        let mut made = state.create();
        if let Err(StateError::Exists(_)) = made {
            let left = state.sandbox();
            let is_anothers = left.address().is_some_and(|address| {
                address.trim() != self.0.address && socket::is_served(&address)
            });
            if is_anothers {
                let checked = left.check_is_of(&self.0.instance);
                checked.map_err(|e| TaskError::failed(&e))?;
            } else {
                warn!(
                    "clean up what a shim has left in {}",
                    state.path().display()
                );
                blocking(move || cleanup::clean_up(&left, None)).await?;
                state.forget_member(id);
                made = state.create();
            }
        }
        made.map_err(|e| TaskError::failed(&e))
    }

    /// A further container of a machine that runs.
    async fn join(
        &self,
        request: &CreateTaskRequest,
        sandbox: &Sandbox,
        others: &Others,
    ) -> Result<u32> {
        let config = Config::load().map_err(|e| TaskError::failed(&e))?;
        let mut wanted = Wanted::read(request, others, config.host_pid)?;
        wanted.check_network(&config, &sandbox.state)?;
        let disks = block_volumes::open(&wanted.guest.block_volumes);
        let disks = disks.map_err(|e| TaskError::failed(&e))?;
        let bound = wanted.bind()?;
        // Its name becomes part of paths here, too.
        StateDir::at("".as_ref(), &self.0.namespace, &request.id)
            .map_err(|e| TaskError::failed(&e))?;
        let created = async {
            let noted = sandbox.state.note_member(&request.id);
            noted.map_err(|e| TaskError::failed(&e))?;
            wanted.show(request, &sandbox.share).await?;
            let added = sandbox.disks.add(&request.id, disks).await;
            added.map_err(|e| TaskError::failed(&e))?;
            sandbox.memory.limit(&request.id, wanted.memory_limit());
            let network = &wanted.guest.network;
            let (stand_ins, mut on_host) =
                beside(sandbox, &request.id, network, others, &config).await?;
            on_host.allow(wanted.privileged_ports);
            // The machine's memory is this one's, too.
            oom_score::raise(&sandbox.state.processes(), wanted.oom_score_adj);
            let container = self.create_in(sandbox, request, wanted, &stand_ins);
            Ok((container.await?, on_host))
        };
        match created.await {
            Ok((container, on_host)) => Ok(self.adopt(request, sandbox, container, bound, on_host)),
            Err(error) => {
                let (share, id) = (Arc::clone(&sandbox.share), request.id.clone());
                let hidden = blocking(move || share.remove(&id)).await;
                if let Err(e) = hidden {
                    warn!("clean up after a failed create: {e}");
                }
                sandbox.disks.remove(&request.id).await;
                sandbox.state.forget_member(&request.id);
                sandbox.memory.forget(&request.id);
                Err(error)
            }
        }
    }

    /// Creates the container in a machine that is up. What stands for it on the host ends if it cannot be.
    async fn create_in(
        &self,
        sandbox: &Sandbox,
        request: &CreateTaskRequest,
        wanted: Wanted,
        stand_ins: &StandIns,
    ) -> Result<Container> {
        let subject = Subject {
            id: request.id.clone(),
            bundle: request.bundle.clone().into(),
            pid: stand_ins.pid(),
        };
        let guest = wanted.guest;
        match create_in(sandbox, &self.0.namespace, request, &guest, &subject).await {
            Ok((init, in_guest)) => {
                let state = sandbox.state.clone();
                let mut container = Container::new(&request.id, wanted.bundle, state, init);
                container.mounts = mounts(request);
                container.hooks = guest.hooks;
                container.init_in_guest = in_guest;
                Ok(container)
            }
            Err(error) => {
                guest.hooks.stopped(&subject).await;
                stand_ins.end().await;
                Err(error)
            }
        }
    }
}

/// What a bundle asks for.
struct Wanted {
    bundle: PathBuf,
    /// Where the root file system is, once it is mounted.
    root: PathBuf,
    guest: Guest,
    annotations: Annotations,
    /// Whether it could bind ports below 1024 on a host.
    privileged_ports: bool,
    /// Of the host's; the guest's has another name.
    cgroups_path: Option<PathBuf>,
    resources: LinuxResources,
    /// How soon the host, too, may end it when memory is short.
    oom_score_adj: i32,
}

impl Wanted {
    fn read(
        request: &CreateTaskRequest,
        neighbours: &impl Neighbours,
        host_pid: HostPid,
    ) -> Result<Self> {
        let bundle = PathBuf::from(&request.bundle);
        let spec = bundle::load(&bundle).map_err(|e| TaskError::Invalid(chain(&e)))?;
        let annotations = annotations::parse(spec.annotations().as_ref())
            .map_err(|e| TaskError::Invalid(e.to_string()))?;
        if host_pid == HostPid::Refuse {
            let checked = bundle::check_has_pids(&spec);
            checked.map_err(|e| TaskError::Invalid(e.to_string()))?;
        }
        let root = bundle::host_root(&spec, &bundle, !request.rootfs.is_empty());
        let linux = spec.linux().as_ref();
        let cgroups_path = linux.and_then(|linux| linux.cgroups_path().clone());
        let resources = linux.and_then(|linux| linux.resources().clone());
        let oom_score_adj = bundle::oom_score_adj(&spec);
        let oom_score_adj = oom_score_adj.map_err(|e| TaskError::Invalid(e.to_string()))?;
        let privileged_ports = bundle::may_bind_privileged_ports(&spec);
        let root_in_guest = Path::new(SHARE_PATH).join(share::root_place(&request.id));
        let guest = bundle::translate(spec, &request.id, &root_in_guest, neighbours)
            .map_err(|e| TaskError::Invalid(e.to_string()))?;
        Ok(Self {
            bundle,
            root,
            guest,
            annotations,
            privileged_ports,
            cgroups_path,
            resources: resources.unwrap_or_default(),
            oom_score_adj,
        })
    }

    /// Refuses a network that is another machine's.
    fn check_network(&self, config: &Config, own: &StateDir) -> Result<()> {
        let bundle::Network::Own(Some(path)) = &self.guest.network else {
            return Ok(());
        };
        let checked = grouping::check_is_free(path, &config.state, own);
        checked.map_err(|e| TaskError::Precondition(chain(&e)))
    }

    /// In bytes, or what its specification says instead of a number.
    fn memory_limit(&self) -> Option<i64> {
        let memory = self.resources.memory().as_ref();
        memory.and_then(LinuxMemory::limit)
    }

    fn bind(&self) -> Result<Bound> {
        Bound::bind(&self.annotations.port_forwards).map_err(|e| TaskError::failed(&e))
    }

    /// Mounts the root file system and shows it to the guest, with the volumes.
    async fn show(&mut self, request: &CreateTaskRequest, share: &Arc<Share>) -> Result<()> {
        let (mounts, at) = (request.rootfs.clone(), self.bundle.join("rootfs"));
        blocking(move || rootfs::mount(&mounts, &at)).await?;
        let (share, id) = (Arc::clone(share), request.id.clone());
        let (root, volumes) = (self.root.clone(), self.guest.volumes.clone());
        let places = blocking(move || share.add(&id, &root, &volumes)).await?;
        let places = places.iter().map(|place| Path::new(SHARE_PATH).join(place));
        self.guest.place(places);
        Ok(())
    }
}

/// Creates the container in a machine that is up; returns its init, and that one's pid in the guest.
async fn create_in(
    sandbox: &Sandbox,
    namespace: &str,
    request: &CreateTaskRequest,
    guest: &Guest,
    subject: &Subject,
) -> Result<(Process, u32)> {
    let hooked = guest.hooks.created(subject).await;
    hooked.map_err(|e| TaskError::failed(&e))?;
    let paths = Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let owner = Owner {
        namespace,
        id: &request.id,
    };
    let (streams, stdio) = open_streams(&paths, owner, &sandbox.ports).await?;
    let create = agent::CreateRequest {
        container_id: request.id.clone(),
        spec: serde_json::to_vec(&guest.spec).map_err(|e| TaskError::failed(&e))?,
        stdio: MessageField::some(stdio),
        disks: guest.disks.clone(),
        ..Default::default()
    };
    let created = sandbox.agent.create(patience(), &create).await?;
    let init = Process::new("", paths, streams, subject.pid);
    Ok((init, created.pid))
}

/// Where the snapshotter's mounts are to be, if it gives any.
fn mounts(request: &CreateTaskRequest) -> Option<PathBuf> {
    (!request.rootfs.is_empty()).then(|| PathBuf::from(&request.bundle).join("rootfs"))
}

fn created_event(request: &CreateTaskRequest, pid: u32) -> event::TaskCreate {
    event::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(event::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        }),
        pid,
        ..Default::default()
    }
}
