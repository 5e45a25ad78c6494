//! Create: from a bundle to a machine with a container in it.

use std::path::PathBuf;

use agent_protocol::{self as agent, SHARE_PATH};
use containerd_shim::protos::api::CreateTaskRequest;
use containerd_shim::protos::events::task as event;
use log::warn;
use oci_spec::runtime::Spec;
use protobuf::MessageField;

use super::{Result, Runtime, Slot, open_streams, patience};
use crate::annotations;
use crate::block_volumes;
use crate::bundle::{self, Guest};
use crate::config::Config;
use crate::container::{Container, Process};
use crate::error::{TaskError, chain};
use crate::events::TaskEvent;
use crate::hooks::Subject;
use crate::port_forward::Bound;
use crate::rootfs;
use crate::sandbox::{Plan, Sandbox};
use crate::state_dir::StateDir;
use crate::stdio::{Owner, Paths};

/// Memory of the machine beyond the container's limit, for the guest's kernel and agent.
const OVERHEAD_MIB: u64 = 128;

impl Runtime {
    /// Boots a machine and creates the container in it; returns its pid.
    ///
    /// # Errors
    /// When it cannot be created; nothing of it is left then.
    pub async fn create(&self, request: &CreateTaskRequest) -> Result<u32> {
        let _turn = self.0.turn.lock().await;
        if !matches!(*self.slot(), Slot::Empty) {
            return Err(TaskError::Exists(format!("container {}", self.0.id)));
        }
        if request.id != self.0.id {
            return Err(TaskError::Invalid(format!(
                "this shim runs container {}, not {}",
                self.0.id, request.id
            )));
        }
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unimplemented("restoring a checkpoint"));
        }
        let created = self.create_container(request).await;
        let (sandbox, container, bound) = created.inspect_err(|_| {
            let mounted = PathBuf::from(&request.bundle).join("rootfs");
            if let Err(e) = rootfs::unmount(&mounted) {
                warn!("clean up after a failed create: {}", chain(&e));
            }
        })?;
        Ok(self.adopt(request, sandbox, container, bound))
    }

    /// The container is there: says so, and watches it from here on.
    pub(super) fn adopt(
        &self,
        request: &CreateTaskRequest,
        sandbox: Sandbox,
        container: Container,
        bound: Bound,
    ) -> u32 {
        let pid = sandbox.pid();
        let (agent, gone) = (sandbox.agent.clone(), sandbox.gone.clone());
        let forwards = bound.serve(&agent, &sandbox.ports);
        *self.slot() = Slot::Live {
            container,
            sandbox: sandbox.into(),
            _forwards: forwards,
        };
        self.publish(TaskEvent::Create(created_event(request, pid)));

        self.watch(agent, gone);
        pid
    }

    async fn create_container(
        &self,
        request: &CreateTaskRequest,
    ) -> Result<(Sandbox, Container, Bound)> {
        let config = Config::load().map_err(|e| TaskError::failed(&e))?;
        let bundle = PathBuf::from(&request.bundle);
        let spec = bundle::load(&bundle).map_err(|e| TaskError::Invalid(chain(&e)))?;
        let annotations = annotations::parse(spec.annotations().as_ref())
            .map_err(|e| TaskError::Invalid(e.to_string()))?;
        let root = bundle::host_root(&spec, &bundle, !request.rootfs.is_empty());
        let memory_mib = memory_mib(config.memory_mib, &spec);
        let guest = bundle::translate(spec, &request.id, SHARE_PATH.as_ref())
            .map_err(|e| TaskError::Invalid(e.to_string()))?;
        let disks = block_volumes::open(&guest.block_volumes);
        let disks = disks.map_err(|e| TaskError::failed(&e))?;
        let bound = Bound::bind(&annotations.port_forwards).map_err(|e| TaskError::failed(&e))?;

        let state = StateDir::at(&config.state, &self.0.namespace, &request.id)
            .map_err(|e| TaskError::failed(&e))?;
        state.create().map_err(|e| TaskError::failed(&e))?;
        let shared = rootfs::mount(&request.rootfs, &bundle.join("rootfs"))
            .and_then(|()| rootfs::share(&state, &request.id, &root, &guest.volumes));
        if let Err(error) = shared {
            if let Err(e) = state.remove() {
                warn!("clean up after a failed mount: {}", chain(&e));
            }
            return Err(TaskError::failed(&error));
        }
        let plan = Plan {
            config: &config,
            state: state.clone(),
            memory_mib,
            disks,
            network: guest.network_namespace.as_deref(),
        };
        let sandbox = Sandbox::boot(plan).await.map_err(|e| match e.hint() {
            Some(hint) => TaskError::Failed(format!("{}; {hint}", chain(&e))),
            None => TaskError::failed(&e),
        })?;
        let subject = Subject {
            id: request.id.clone(),
            bundle: request.bundle.clone().into(),
            pid: sandbox.pid(),
        };
        match create_in(&sandbox, &self.0.namespace, request, &guest, &subject).await {
            Ok((init, in_guest)) => {
                let mut container = Container::new(&request.id, bundle, state, init);
                container.hooks = guest.hooks;
                container.init_in_guest = in_guest;
                Ok((sandbox, container, bound))
            }
            Err(error) => {
                if let Err(e) = sandbox.shut_down().await {
                    warn!("clean up after a failed create: {}", chain(&e));
                }
                guest.hooks.stopped(&subject).await;
                Err(error)
            }
        }
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
        ..Default::default()
    };
    let created = sandbox.agent.create(patience(), &create).await?;
    let init = Process::new("", paths, streams, sandbox.pid());
    Ok((init, created.pid))
}

/// Memory of the machine: enough for the container's limit, and the configured size otherwise.
fn memory_mib(configured: u32, spec: &Spec) -> u32 {
    let limit = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.memory().as_ref())
        .and_then(oci_spec::runtime::LinuxMemory::limit);
    let wanted = match limit.map(u64::try_from) {
        Some(Ok(bytes)) => (bytes >> 20).saturating_add(OVERHEAD_MIB),
        _ => 0,
    };
    // More than the host has is of no use: a limit may be any number.
    let host = host_memory_mib().unwrap_or(u64::from(u32::MAX));
    u32::try_from(wanted.min(host))
        .unwrap_or(u32::MAX)
        .max(configured)
}

fn host_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let mut lines = info.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib >> 10)
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
