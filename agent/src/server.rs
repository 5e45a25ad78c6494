//! The service: one method per RPC. Translates the request, calls, translates back.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use agent_protocol::{
    Agent, Clock, ClockAdjustment, ContainerId, CreateRequest, CreateResponse, Disks, Empty, Event,
    ExecRequest, ForwardRequest, HelloRequest, HelloResponse, ListeningRequest, ListeningResponse,
    ListeningSocket, MemoryGrant, NetworkId, NetworkRequest, PROTOCOL_VERSION, PidsResponse,
    Process, ProcessId, ResizeRequest, ResolveRequest, SignalRequest, StartResponse, StatsResponse,
    Stdio, UpdateRequest,
};
use async_trait::async_trait;
use tokio::sync::Notify;
use ttrpc::Code;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::clock;
use crate::container::Containers;
use crate::container::create::CreateError;
use crate::container::devices::Disk;
use crate::container::error::ContainerError;
use crate::disks;
use crate::error_chain;
use crate::events::Events;
use crate::forward::{self, ForwardError, Protocol};
use crate::host::Host;
use crate::listening;
use crate::memory::Grants;
use crate::names::Names;
use crate::network::{Namespace, Networks};
use crate::processors::Processors;
use crate::shares::Shares;
use crate::stdio::{Ports, StdioError};

/// What the calls act on.
#[derive(Clone)]
pub struct Service {
    /// Where forwards come from.
    pub host: Host,
    /// The containers.
    pub containers: Containers,
    /// The host's directories.
    pub shares: Arc<Shares>,
    /// Where the network cards are.
    pub networks: Arc<Networks>,
    /// Where containers can ask for names.
    pub names: Arc<Names>,
    /// What happened.
    pub events: Arc<Events>,
    /// How much memory the machine may have.
    pub grants: Arc<Grants>,
    /// The machine's.
    pub processors: Arc<Processors>,
    /// Told once everything is stopped.
    pub stopped: Arc<Notify>,
}

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, req: HelloRequest) -> ttrpc::Result<HelloResponse> {
        if req.version != PROTOCOL_VERSION {
            return Err(status(
                Code::FAILED_PRECONDITION,
                format!(
                    "the shim speaks version {} of the agent's protocol, the agent {PROTOCOL_VERSION}",
                    req.version
                ),
            ));
        }
        let reaper = self.containers.reaper();
        for share in &req.shares {
            let mounted = self
                .shares
                .mount(reaper, &share.tag, Path::new(&share.path))
                .await;
            mounted.map_err(internal)?;
        }
        let kernel = nix::sys::utsname::uname().map_err(internal)?;
        let (processors, containers) = (Arc::clone(&self.processors), self.containers.clone());
        tokio::spawn(async move { processors.online(containers.reaper()).await });
        Ok(HelloResponse {
            kernel_release: kernel.release().to_string_lossy().into_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..HelloResponse::default()
        })
    }

    async fn create(&self, _: &TtrpcContext, req: CreateRequest) -> ttrpc::Result<CreateResponse> {
        let (processors, containers) = (Arc::clone(&self.processors), self.containers.clone());
        let ports = ports(&req.stdio)?;
        let disks = disks_of(&req.disks)?;
        let created = to_its_end(async move {
            processors.online(containers.reaper()).await;
            let id = &req.container_id;
            containers.create(id, &req.spec, &disks, ports).await
        });
        Ok(CreateResponse {
            pid: wire_pid(created.await?)?,
            ..CreateResponse::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecRequest) -> ttrpc::Result<Empty> {
        let ports = ports(&req.stdio)?;
        let id = ProcessId {
            container_id: req.container_id,
            exec_id: req.exec_id,
            ..ProcessId::default()
        };
        empty(self.containers.exec(&id, &req.process, ports))
    }

    async fn start(&self, _: &TtrpcContext, req: ProcessId) -> ttrpc::Result<StartResponse> {
        let containers = self.containers.clone();
        let started = to_its_end(async move { containers.start(&req).await });
        Ok(StartResponse {
            pid: wire_pid(started.await?)?,
            ..StartResponse::default()
        })
    }

    async fn signal(&self, _: &TtrpcContext, req: SignalRequest) -> ttrpc::Result<Empty> {
        let signal = i32::try_from(req.signal).map_err(|_| invalid("no such signal"))?;
        empty(if req.all {
            self.containers
                .signal_all(&req.process.container_id, signal)
        } else {
            self.containers.signal(&req.process, signal)
        })
    }

    async fn resize(&self, _: &TtrpcContext, req: ResizeRequest) -> ttrpc::Result<Empty> {
        let size = |length: u32| u16::try_from(length).map_err(|_| invalid("too large a terminal"));
        let (width, height) = (size(req.width)?, size(req.height)?);
        empty(self.containers.resize(&req.process, width, height))
    }

    async fn delete(&self, _: &TtrpcContext, req: ProcessId) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        to_its_end(async move { containers.delete(&req).await }).await?;
        Ok(Empty::default())
    }

    async fn add_disks(&self, _: &TtrpcContext, req: Disks) -> ttrpc::Result<Empty> {
        let added = disks::add(self.containers.reaper(), &req.serials).await;
        added.map_err(internal)?;
        Ok(Empty::default())
    }

    async fn remove_disks(&self, _: &TtrpcContext, req: Disks) -> ttrpc::Result<Empty> {
        let removed = disks::remove(self.containers.reaper(), &req.serials).await;
        removed.map_err(internal)?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, req: ContainerId) -> ttrpc::Result<PidsResponse> {
        let processes = self.containers.processes(&req.container_id).await;
        let processes = processes.map_err(|error| failure(&error))?.into_iter();
        let processes = processes.map(|(described, exec_id)| {
            Ok(Process {
                pid: wire_pid(described.pid)?,
                exec_id,
                started: described.started,
                name: described.name,
                command_line: described.command_line,
                uid: described.uid,
                gid: described.gid,
                zombie: described.zombie,
                ..Process::default()
            })
        });
        Ok(PidsResponse {
            processes: processes.collect::<ttrpc::Result<_>>()?,
            ..PidsResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, req: ContainerId) -> ttrpc::Result<StatsResponse> {
        Ok(StatsResponse {
            files: self
                .containers
                .stats(&req.container_id)
                .map_err(|error| failure(&error))?,
            ..StatsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, req: ContainerId) -> ttrpc::Result<Empty> {
        self.set_paused(req, true).await
    }

    async fn resume(&self, _: &TtrpcContext, req: ContainerId) -> ttrpc::Result<Empty> {
        self.set_paused(req, false).await
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateRequest) -> ttrpc::Result<Empty> {
        let resources = serde_json::from_slice(&req.resources)
            .map_err(|error| invalid(&format!("decode linux.resources: {error}")))?;
        let containers = self.containers.clone();
        to_its_end(async move { containers.update(&req.container_id, &resources).await }).await?;
        Ok(Empty::default())
    }

    async fn configure(&self, _: &TtrpcContext, req: NetworkRequest) -> ttrpc::Result<Empty> {
        // Of a network that is known its first container may be gone.
        let namespace = self.containers.network(&req.container_id).ok();
        let configured = self.networks.configure(&req, namespace).await;
        configured.map_err(internal)?;
        Ok(Empty::default())
    }

    async fn disconnect(&self, _: &TtrpcContext, req: NetworkId) -> ttrpc::Result<Empty> {
        self.names.end(req.network);
        let disconnected = self.networks.disconnect(req.network).await;
        disconnected.map_err(internal)?;
        Ok(Empty::default())
    }

    async fn forward(&self, _: &TtrpcContext, req: ForwardRequest) -> ttrpc::Result<Empty> {
        let protocol = match req.protocol.enum_value() {
            Ok(agent_protocol::Protocol::TCP) => Protocol::Tcp,
            Ok(agent_protocol::Protocol::UDP) => Protocol::Udp,
            Err(_) => return Err(invalid("no such protocol")),
        };
        let port = u16::try_from(req.port).map_err(|_| invalid("no such port"))?;
        let network = if req.container_id.is_empty() {
            self.network(req.network).await?
        } else {
            let network = self.containers.network(&req.container_id);
            network.map_err(|error| failure(&error))?
        };
        let address = match req.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid("no such address"))?),
        };
        let service = (address, port);
        match forward::forward(self.host, &network, protocol, service, req.host_port).await {
            Ok(()) => Ok(Empty::default()),
            Err(error @ ForwardError::Service { .. }) => {
                Err(status(Code::UNAVAILABLE, error_chain(&error)))
            }
            Err(error @ ForwardError::Host { .. }) => Err(internal(error)),
        }
    }

    async fn listening(
        &self,
        _: &TtrpcContext,
        req: ListeningRequest,
    ) -> ttrpc::Result<ListeningResponse> {
        let network = self.network(req.network).await?;
        let known: Vec<_> = req.known.iter().filter_map(known_socket).collect();
        let sockets = listening::changed(&network, &known).await;
        let sockets = sockets.map_err(internal)?.into_iter();
        let told = sockets.map(|socket| ListeningSocket {
            protocol: match socket.protocol {
                Protocol::Tcp => agent_protocol::Protocol::TCP,
                Protocol::Udp => agent_protocol::Protocol::UDP,
            }
            .into(),
            address: socket.address.ip().to_string(),
            port: socket.address.port().into(),
            ..ListeningSocket::default()
        });
        Ok(ListeningResponse {
            sockets: told.collect(),
            ..ListeningResponse::default()
        })
    }

    async fn resolve(&self, _: &TtrpcContext, req: ResolveRequest) -> ttrpc::Result<Empty> {
        let namespace = self.network(req.network).await?;
        let names = &self.names;
        let served = names.serve(req.network, &namespace, self.host, req.host_port);
        served.await.map_err(internal)?;
        Ok(Empty::default())
    }

    async fn grant(&self, _: &TtrpcContext, req: MemoryGrant) -> ttrpc::Result<Empty> {
        self.grants.grant(req.mib);
        Ok(Empty::default())
    }

    async fn adjust_clock(&self, _: &TtrpcContext, req: ClockAdjustment) -> ttrpc::Result<Clock> {
        let unix_nanoseconds = clock::now().map_err(internal)?;
        clock::adjust(req.nanoseconds).map_err(internal)?;
        Ok(Clock {
            unix_nanoseconds,
            ..Clock::default()
        })
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        stream: ServerStreamSender<Event>,
    ) -> ttrpc::Result<()> {
        let Some(subscription) = self.events.subscribe() else {
            return Err(status(
                Code::FAILED_PRECONDITION,
                "somebody takes the events already".into(),
            ));
        };
        loop {
            stream.send(&subscription.oldest().await).await?;
            subscription.taken();
        }
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        let service = self.clone();
        to_its_end(async move { service.stop().await }).await?;
        Ok(Empty::default())
    }
}

impl Service {
    async fn set_paused(&self, id: ContainerId, paused: bool) -> ttrpc::Result<Empty> {
        let containers = self.containers.clone();
        to_its_end(async move { containers.set_paused(&id.container_id, paused).await }).await?;
        Ok(Empty::default())
    }

    /// The namespace of a network that was configured.
    async fn network(&self, number: u32) -> ttrpc::Result<Namespace> {
        let network = self.networks.namespace(number).await;
        network.map_err(|error| status(Code::NOT_FOUND, format!("network {number}: {error}")))
    }

    /// Everything comes to its end, whatever goes wrong on the way.
    async fn stop(&self) -> Result<(), ContainerError> {
        let killed = self.containers.kill_all().await;
        let unmounted = self.shares.unmount_all(self.containers.reaper()).await;
        self.stopped.notify_one();
        killed?;
        Ok(unmounted?)
    }
}

/// Completes `work` even if the caller gives up (ttrpc drops the handler then): a container half
/// made would be nobody's.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(error) => Err(internal(error)),
    }
}

/// The disks that a configuration's devices are, by their paths and serial numbers.
fn disks_of(asked: &HashMap<String, String>) -> ttrpc::Result<Vec<Disk>> {
    let disk = |(path, serial): (&String, &String)| {
        let number = disks::numbers(serial)
            .map_err(|error| invalid(&format!("disk {serial} for {path}: {error}")))?;
        Ok(Disk {
            path: path.into(),
            number,
        })
    };
    asked.iter().map(disk).collect()
}

/// A socket that was told before, or something that never was.
fn known_socket(socket: &ListeningSocket) -> Option<listening::Socket> {
    let protocol = match socket.protocol.enum_value().ok()? {
        agent_protocol::Protocol::TCP => Protocol::Tcp,
        agent_protocol::Protocol::UDP => Protocol::Udp,
    };
    let port = u16::try_from(socket.port).ok()?;
    let address = std::net::SocketAddr::new(socket.address.parse().ok()?, port);
    Some(listening::Socket { protocol, address })
}

fn ports(stdio: &Stdio) -> ttrpc::Result<Ports> {
    Ports::try_from(stdio).map_err(|error| invalid(&error_chain(&error)))
}

fn wire_pid(pid: i32) -> ttrpc::Result<u32> {
    u32::try_from(pid).map_err(internal)
}

fn empty(result: Result<(), ContainerError>) -> ttrpc::Result<Empty> {
    result
        .map(|()| Empty::default())
        .map_err(|error| failure(&error))
}

/// The one place where errors get their codes.
fn failure(error: &ContainerError) -> ttrpc::Error {
    let code = match error {
        ContainerError::NoContainer(_)
        | ContainerError::NoExec { .. }
        | ContainerError::Finished => Code::NOT_FOUND,
        ContainerError::Exists { .. } => Code::ALREADY_EXISTS,
        ContainerError::State { .. }
        | ContainerError::NotRunning
        | ContainerError::Paused { .. }
        | ContainerError::NoTerminal => Code::FAILED_PRECONDITION,
        ContainerError::Plan(_)
        | ContainerError::Create(
            CreateError::Launch(_) | CreateError::Stdio(StdioError::TerminalStderr(_)),
        ) => Code::INVALID_ARGUMENT,
        ContainerError::Create(_)
        | ContainerError::Remove(_)
        | ContainerError::Cgroup(_)
        | ContainerError::Operation(_)
        | ContainerError::System { .. }
        | ContainerError::Undead(_) => Code::INTERNAL,
    };
    status(code, error_chain(error))
}

fn invalid(message: &str) -> ttrpc::Error {
    status(Code::INVALID_ARGUMENT, message.to_owned())
}

fn internal(error: impl std::error::Error) -> ttrpc::Error {
    status(Code::INTERNAL, error_chain(&error))
}

fn status(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}
