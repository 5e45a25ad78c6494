//! Namespaces: those that the guest makes, the network, which is one of the host's, too, and those that
//! belong to another container of the machine.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{Unsupported, unsupported};

/// The containers of a machine, to be asked whose a namespace is.
pub trait Neighbours {
    /// Whether there are any: the machine runs already.
    fn any(&self) -> bool;

    /// Whether the machine's own network is one that stands for the host's.
    fn machine_has_hosts_network(&self) -> bool;

    /// How many block devices there have been: those of this container are numbered from there on.
    fn block_devices(&self) -> usize;

    /// The container whose namespace of this type the host's `path` names.
    fn owner(&self, kind: LinuxNamespaceType, path: &Path) -> Option<String>;
}

/// The first container of a machine has none.
pub struct Nobody;

impl Neighbours for Nobody {
    fn any(&self) -> bool {
        false
    }

    fn machine_has_hosts_network(&self) -> bool {
        false
    }

    fn block_devices(&self) -> usize {
        0
    }

    fn owner(&self, _: LinuxNamespaceType, _: &Path) -> Option<String> {
        None
    }
}

/// Which network a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's own, as that of the machine which it joins is: the configuration names none.
    Machine,
    /// The host's own: the configuration names none.
    Host,
    /// Its own: this namespace of the host, or a new one.
    Own(Option<PathBuf>),
    /// That of another container of the machine.
    Of(String),
}

/// The namespaces for the agent, and the network.
pub(super) fn translate(
    asked: &[LinuxNamespace],
    neighbours: &impl Neighbours,
) -> Result<(Vec<LinuxNamespace>, Network), Unsupported> {
    let mut kept: Vec<LinuxNamespace> = Vec::new();
    let mut network = if neighbours.machine_has_hosts_network() {
        Network::Machine
    } else {
        Network::Host
    };
    let has_users = asked.iter().any(|n| n.typ() == LinuxNamespaceType::User);
    for (number, namespace) in asked.iter().enumerate() {
        let kind = namespace.typ();
        if asked[..number].iter().any(|n| n.typ() == kind) {
            return unsupported(&field(kind, ""), "there is one of this type already");
        }
        let path = namespace
            .path()
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        let owner = path
            .as_deref()
            .and_then(|path| neighbours.owner(kind, path));
        match (kind, path, owner) {
            // The agent is given the container's name for a path.
            (_, _, Some(owner)) => {
                if kind == LinuxNamespaceType::Network {
                    network = Network::Of(owner.clone());
                }
                let mut joined = namespace.clone();
                joined.set_path(Some(owner.into()));
                kept.push(joined);
            }
            (LinuxNamespaceType::Network, path, None) => {
                network = Network::Own(path);
                // For its first container the machine's own will do, unless it has to belong to a
                // user namespace.
                if neighbours.any() || has_users {
                    let mut new = namespace.clone();
                    new.set_path(None);
                    kept.push(new);
                }
            }
            (_, None, None) => kept.push(namespace.clone()),
            (kind, Some(_), None) => {
                return unsupported(
                    &field(kind, ".path"),
                    "it belongs to no container of this virtual machine",
                );
            }
        }
    }
    // The machine's own is somebody else's.
    if network == Network::Host && neighbours.any() {
        let mut new = LinuxNamespace::default();
        new.set_typ(LinuxNamespaceType::Network);
        kept.push(new);
    }
    Ok((kept, network))
}

/// The configuration's name of a namespace's field.
fn field(kind: LinuxNamespaceType, rest: &str) -> String {
    let kind = match kind {
        LinuxNamespaceType::Mount => "mount".to_owned(),
        LinuxNamespaceType::Network => "network".to_owned(),
        // The others are written as the kernel calls them.
        kind => kind.to_string(),
    };
    format!("linux.namespaces[{kind}]{rest}")
}
