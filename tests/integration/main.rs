//! Stories of users and of shims, on real containerd and real virtual machines.
//!
//! Run them with `tests/integration/run`.

/// What time it is in a container.
mod clock;
/// A host with two containerds.
mod containerds;
/// Many lives, many processes.
mod endurance;
/// What goes wrong before a container runs: one clear error, nothing left.
mod errors;
/// What containerd is told, in order.
mod events;
/// Ports of the host that lead into a container.
mod forward;
/// Hooks of the OCI configuration.
mod hooks;
/// The cgroup that a machine is in.
mod host_cgroup;
/// Containers with the host's own network.
mod host_network;
/// What containerd asks of the runtime itself.
mod info;
/// What holds the processes of a machine.
mod jail;
/// Containers that stay: exec, look inside, signal, remove.
mod lifecycle;
/// Memory that grows with what is used of it.
mod memory;
/// Names that an engine's resolver knows.
mod names;
/// The network of a namespace given by its path.
mod network;
/// The OCI runtime specification, demand by demand.
mod oci;
/// `hull oci`, which others call as runc.
mod oci_command;
/// Options that containerd's clients give the runtime.
mod options;
/// A container's processes, looked at from the host.
mod processes;
/// A container's processors.
mod processors;
/// Containers that run one command.
mod run;
/// Containers that share namespaces, and so a machine.
mod sandbox;
/// Folders of the host.
mod shared_folders;
/// User namespaces.
mod users;
/// `hull-vmm` alone, with a kernel and busybox.
mod vmm;
/// File systems on block devices.
mod volumes;
