//! Which namespaces a container gets, and which it shares with another of this machine.
//!
//! Where the host's configuration has a path, the shim has put the name of the container that the
//! namespace belongs to: that one's init is in it.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use super::refusal::PlanError;
use super::user_namespace::{self, IdMaps};

/// What a container that joins another needs to know of it.
#[derive(Debug)]
pub struct Neighbour {
    /// Its init, in the agent's pid namespace.
    pub init: i32,
    /// The ids of its user namespace, if it has one.
    pub id_maps: Option<IdMaps>,
}

/// The user namespace of a container.
#[derive(Debug, PartialEq, Eq)]
pub enum UserNamespace {
    /// None: users are the machine's.
    None,
    /// One that the agent makes (see `user_namespace`).
    Own(IdMaps),
    /// Another container's.
    Joined(IdMaps),
}

impl UserNamespace {
    /// Which users are which in it.
    pub fn id_maps(&self) -> Option<&IdMaps> {
        match self {
            Self::None => None,
            Self::Own(maps) | Self::Joined(maps) => Some(maps),
        }
    }
}

/// Gives every namespace that is joined its path in this machine, and takes the ids of a user
/// namespace out of the configuration: libcontainer joins the one that `user_namespace` makes, and
/// the network namespace that belongs to it.
///
/// # Errors
/// `NoNeighbour`, `Missing`, `IdMap`.
pub fn settle(
    id: &str,
    linux: &mut Linux,
    neighbour: impl Fn(&str) -> Option<Neighbour>,
) -> Result<UserNamespace, PlanError> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let mut user = UserNamespace::None;
    for namespace in &mut namespaces {
        if let Some((name, other)) = joined(namespace, &neighbour)? {
            // A type is written as its file is called (namespaces(7)).
            let path = format!("/proc/{}/ns/{}", other.init, namespace.typ());
            namespace.set_path(Some(path.into()));
            if namespace.typ() == LinuxNamespaceType::User {
                let maps = other.id_maps.ok_or(PlanError::NoNeighbour {
                    namespace: LinuxNamespaceType::User,
                    container: name,
                })?;
                user = UserNamespace::Joined(maps);
            }
        } else if namespace.typ() == LinuxNamespaceType::User {
            let maps = IdMaps::new(linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())?;
            namespace.set_path(Some(user_namespace::path(id)));
            user = UserNamespace::Own(maps);
        }
    }
    if matches!(user, UserNamespace::Own(_)) {
        let own = namespaces.iter_mut().filter(|it| is_own_network(it));
        own.for_each(|it| {
            it.set_path(Some(user_namespace::network_path(id)));
        });
    }
    linux.set_namespaces(Some(namespaces));
    if user != UserNamespace::None {
        linux.set_uid_mappings(None).set_gid_mappings(None);
    }
    Ok(user)
}

/// Refuses a container without a mount namespace: its root would be made in the agent's.
///
/// # Errors
/// `Unsupported`.
pub fn check_has_mounts(linux: &Linux) -> Result<(), PlanError> {
    let mut namespaces = linux.namespaces().iter().flatten();
    if namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
        Ok(())
    } else {
        Err(PlanError::Unsupported(
            "the mount namespace of the runtime (linux.namespaces[mount] is not there)",
        ))
    }
}

fn is_own_network(namespace: &LinuxNamespace) -> bool {
    let path = namespace.path().as_ref();
    namespace.typ() == LinuxNamespaceType::Network
        && path.is_none_or(|path| path.as_os_str().is_empty())
}

/// The container whose namespace this is to be, with its name.
fn joined(
    namespace: &LinuxNamespace,
    neighbour: &impl Fn(&str) -> Option<Neighbour>,
) -> Result<Option<(String, Neighbour)>, PlanError> {
    let path = namespace.path().as_ref().map(PathBuf::as_path);
    let Some(name) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let name = name.to_string_lossy().into_owned();
    match neighbour(&name) {
        Some(other) => Ok(Some((name, other))),
        None => Err(PlanError::NoNeighbour {
            namespace: namespace.typ(),
            container: name,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settled(linux: Value) -> Result<(Value, UserNamespace), PlanError> {
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        let user = settle("c1", &mut linux, |name| {
            (name == "c0").then_some(Neighbour {
                init: 7,
                id_maps: None,
            })
        })?;
        Ok((serde_json::to_value(linux).unwrap(), user))
    }

    #[test]
    fn a_joined_namespace_is_that_of_the_others_init() {
        let asked =
            json!({ "namespaces": [{ "type": "ipc" }, { "type": "network", "path": "c0" }] });
        let (linux, user) = settled(asked).unwrap();

        assert_eq!(linux["namespaces"][0]["path"], Value::Null);
        assert_eq!(linux["namespaces"][1]["path"], "/proc/7/ns/net");
        assert_eq!(user, UserNamespace::None);
    }

    #[test]
    fn a_container_has_mounts_of_its_own() {
        let check = |namespaces| {
            let linux = serde_json::from_value(json!({ "namespaces": namespaces })).unwrap();
            check_has_mounts(&linux).map_err(|error| error.to_string())
        };

        let refused = check(json!([{ "type": "pid" }])).unwrap_err();

        assert!(refused.contains("linux.namespaces[mount]"), "{refused}");
        assert_eq!(check(json!([{ "type": "mount" }])), Ok(()));
    }

    #[test]
    fn a_container_that_is_not_here_cannot_be_joined() {
        for (namespace, name) in [("pid", "c2"), ("user", "c0")] {
            let asked = json!({ "namespaces": [{ "type": namespace, "path": name }] });
            let error = settled(asked).unwrap_err().to_string();
            assert!(error.contains(namespace) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn an_own_user_namespace_is_one_to_join() {
        let maps = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
        let mapped = json!({ "namespaces": [{ "type": "user" }, { "type": "network" }],
            "uidMappings": maps, "gidMappings": maps });
        let (linux, user) = settled(mapped).unwrap();

        let path = user_namespace::path("c1");
        assert_eq!(linux["namespaces"][0]["path"], path.to_str().unwrap());
        let network = user_namespace::network_path("c1");
        assert_eq!(linux["namespaces"][1]["path"], network.to_str().unwrap());
        assert_eq!(linux["uidMappings"], Value::Null);
        assert!(matches!(user, UserNamespace::Own(_)));
        let unmapped = json!({ "namespaces": [{ "type": "user" }] });
        let error = settled(unmapped).unwrap_err();
        assert!(matches!(error, PlanError::Missing("linux.uidMappings")));
    }
}
