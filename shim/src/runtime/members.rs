//! The sandbox of a shim and the containers in it: who is there, and who is the last.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;

use super::Result;
use super::host_network::HostNetwork;
use super::on_host::OnHost;
use crate::bundle::Neighbours;
use crate::container::Container;
use crate::error::TaskError;
use crate::grouping;
use crate::host_cgroup::HostCgroup;
use crate::network::Network;
use crate::sandbox::Sandbox;
use crate::stand_ins::StandIns;

/// The machine, as long as it runs, and its containers, until they are deleted.
#[derive(Default)]
pub(super) struct Members {
    machine: Option<Arc<Sandbox>>,
    containers: HashMap<String, Member>,
    /// Of the machine that is or was here, until it is removed.
    cgroup: Option<Arc<HostCgroup>>,
    /// A container is being created, in the machine or with one of its own.
    creating: bool,
}

/// A container, and what is there for it on the host while it runs.
struct Member {
    container: Container,
    on_host: OnHost,
}

impl Members {
    /// Nobody, nor a machine.
    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.machine.is_none() && !self.creating
    }

    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container> {
        match self.containers.get_mut(id) {
            Some(member) => Ok(&mut member.container),
            None => Err(TaskError::NotFound(format!("container {id}"))),
        }
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers.values().map(|member| &member.container)
    }

    pub(super) fn sandbox(&self) -> Result<&Arc<Sandbox>> {
        let gone = || TaskError::Precondition("the virtual machine is gone".into());
        self.machine.as_ref().ok_or_else(gone)
    }

    /// A container is to be created: tells the machine that it may join. That stays, and so does the shim, until the
    /// container is added, or [`Members::created_not`] says that it will not be.
    pub(super) fn join(&mut self) -> Option<(Arc<Sandbox>, Others)> {
        self.creating = true;
        let machine = self.machine.clone()?;
        let alive = (self.containers.iter())
            .filter(|(_, member)| member.container.init.exit().is_none())
            .map(|(id, member)| Other {
                id: id.clone(),
                pid: member.container.init.pid(),
                network: member.on_host.network.clone(),
                host_network: member.on_host.host_network.clone(),
            });
        let others = Others {
            alive: alive.collect(),
            block_devices: machine.disks.count(),
        };
        Some((machine, others))
    }

    pub(super) fn created_not(&mut self) {
        self.creating = false;
    }

    /// A machine was booted.
    pub(super) fn boot(&mut self, machine: Arc<Sandbox>) {
        self.cgroup.clone_from(&machine.account.cgroup);
        self.machine = Some(machine);
    }

    /// Takes the cgroup of the machine that was here.
    pub(super) fn take_cgroup(&mut self) -> Option<Arc<HostCgroup>> {
        self.cgroup.take()
    }

    /// The cgroup of the machine, if nobody but container `id` is in it.
    pub(super) fn group_of(&self, id: &str) -> Option<Arc<HostCgroup>> {
        let mut others = self.containers.keys().filter(|&other| other != id);
        let alone = !self.creating && others.next().is_none();
        self.cgroup.clone().filter(|_| alone)
    }

    pub(super) fn add(&mut self, container: Container, on_host: OnHost) {
        self.creating = false;
        let id = container.id.clone();
        self.containers.insert(id, Member { container, on_host });
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.containers.remove(id);
    }

    /// What is there for a container's processes.
    pub(super) fn stand_ins(&self, id: &str) -> Option<Arc<StandIns>> {
        self.containers.get(id)?.on_host.stand_ins.clone()
    }

    /// The network that a container is in, if that is one of the host's, too.
    pub(super) fn network(&self, id: &str) -> Option<Network> {
        self.containers.get(id)?.on_host.network.clone()
    }

    /// What connects a container to the host's own network.
    pub(super) fn host_network(&self, id: &str) -> Option<Arc<HostNetwork>> {
        self.containers.get(id)?.on_host.host_network.clone()
    }

    /// Takes what there is for a container that is over; its network only if no other is in it.
    pub(super) fn take_on_host(&mut self, id: &str) -> OnHost {
        let member = self.containers.get_mut(id);
        let mut taken = member.map_or_else(OnHost::default, |member| {
            std::mem::take(&mut member.on_host)
        });
        let mut left = self.containers.values();
        if left.any(|member| member.on_host.network == taken.network) {
            taken.network = None;
        }
        taken
    }

    /// Whether the machine is there for container `id` alone.
    pub(super) fn is_last(&self, id: &str) -> bool {
        let mut others = self.containers().filter(|container| container.id != id);
        !self.creating && others.all(|other| other.init.exit().is_some())
    }

    /// Whether everybody who is not over was to end by SIGKILL, that long ago or longer.
    pub(super) fn all_killed(&self, ago: Duration) -> bool {
        let mut left = (self.containers()).filter(|it| it.init.exit().is_none());
        !self.creating && left.all(|container| container.init.was_killed(ago))
    }

    /// Takes the machine, to end it, if it is there for container `id` alone.
    pub(super) fn take_machine(&mut self, id: &str) -> Option<Arc<Sandbox>> {
        if self.is_last(id) {
            self.machine.take()
        } else {
            None
        }
    }
}

/// The containers of a machine that are not over.
pub(super) struct Others {
    alive: Vec<Other>,
    /// How many block devices there have been in the machine.
    block_devices: usize,
}

struct Other {
    id: String,
    /// As containerd was told.
    pid: u32,
    network: Option<Network>,
    host_network: Option<Arc<HostNetwork>>,
}

impl Others {
    /// The network that a container is in, if that is one of the host's, too.
    pub(super) fn network(&self, id: &str) -> Option<&Network> {
        let mut others = self.alive.iter();
        others.find(|other| other.id == id)?.network.as_ref()
    }

    /// What connects a network to the host's own.
    pub(super) fn host_network(&self, network: &Network) -> Option<Arc<HostNetwork>> {
        let mut others = self.alive.iter();
        let other = others.find(|other| other.network.as_ref() == Some(network))?;
        other.host_network.clone()
    }
}

impl Neighbours for Others {
    fn any(&self) -> bool {
        true
    }

    fn machine_has_hosts_network(&self) -> bool {
        let mut others = self.alive.iter();
        others.any(|other| {
            let network = other.network.as_ref();
            other.host_network.is_some() && network.is_some_and(Network::is_machines)
        })
    }

    fn block_devices(&self) -> usize {
        self.block_devices
    }

    fn owner(&self, kind: LinuxNamespaceType, path: &Path) -> Option<String> {
        let pids: Vec<u32> = self.alive.iter().map(|other| other.pid).collect();
        let owner = grouping::owner(kind, path, &pids)?;
        let mut others = self.alive.iter();
        others
            .find(|other| other.pid == owner)
            .map(|other| other.id.clone())
    }
}
