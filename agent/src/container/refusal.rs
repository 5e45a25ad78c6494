//! Why configurations are refused.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccompAction, PosixRlimitType};

use super::device_nodes::DeviceNodeError;
use super::devices::DeviceError;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not the JSON of an OCI object.
    #[error("decode {object}")]
    Decode {
        /// Which object.
        object: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An id that cannot be a file name.
    #[error("invalid id {0:?}: 1 to 128 letters, digits and any of _ + - .")]
    Id(String),
    /// A field that a container cannot do without.
    #[error("the configuration has no {0}")]
    Missing(&'static str),
    /// `process.terminal` contradicts the streams.
    #[error("process.terminal is {in_spec} but the streams were set up for {in_request}")]
    Terminal {
        /// What the configuration says.
        in_spec: bool,
        /// What the request says.
        in_request: bool,
    },
    /// A field that says something a Hull guest does not do.
    #[error("not supported in a microVM: {0}")]
    Unsupported(&'static str),
    /// A device rule that means nothing.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device outside `/dev` that cannot be there.
    #[error(transparent)]
    DeviceNode(#[from] DeviceNodeError),
    /// A map of user or group ids that no container can live with.
    #[error("{0} must map the container's root (id 0), in at most 340 lines")]
    IdMap(&'static str),
    /// A namespace of a container that has none, or is not here.
    #[error("linux.namespaces[{namespace}]: container {container:?} has none to join here")]
    NoNeighbour {
        /// Its type.
        namespace: LinuxNamespaceType,
        /// Whose it was to be.
        container: String,
    },
    /// A working directory that `chdir(2)` would take relative to nothing.
    #[error("process.cwd {} is not absolute", .0.display())]
    RelativeCwd(PathBuf),
    /// Two limits for the same resource.
    #[error("process.rlimits has {0} twice")]
    DuplicateRlimit(PosixRlimitType),
    /// A seccomp action that returns no error, with one to return.
    #[error("linux.seccomp: {action:?} takes no {field}")]
    Errno {
        /// `errnoRet` or `defaultErrnoRet`.
        field: &'static str,
        /// The action.
        action: LinuxSeccompAction,
    },
}
