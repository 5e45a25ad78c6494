//! Why a request about a container failed; `server` gives each its code.

use std::time::Duration;

use super::create::{CreateError, RemoveError};
use super::refusal::PlanError;
use crate::cgroup::CgroupError;
use crate::operation::OperationError;

/// Why a request about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Never created, or deleted.
    #[error("container {0:?} not found")]
    NoContainer(String),
    /// Never registered, or deleted.
    #[error("exec {exec_id:?} of container {container_id:?} not found")]
    NoExec {
        /// The container.
        container_id: String,
        /// The process.
        exec_id: String,
    },
    /// The id is taken.
    #[error("{what} {id:?} already exists")]
    Exists {
        /// `container` or `exec`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// It is over.
    #[error("process already finished")]
    Finished,
    /// Not in this state.
    #[error("cannot {action} a process that is {state}")]
    State {
        /// What was asked for.
        action: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// Its init is over.
    #[error("the container is not running")]
    NotRunning,
    /// Nor this.
    #[error("cannot {action} a container that is paused")]
    Paused {
        /// What was asked for.
        action: &'static str,
    },
    /// Only a terminal has a size.
    #[error("the process has no terminal")]
    NoTerminal,
    /// The configuration is refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The process could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Something of it is still there.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// The cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A forked operation failed.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// `kill(2)` or an ioctl refused.
    #[error("{action}")]
    System {
        /// What was tried.
        action: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Killed processes that do not end.
    #[error("processes are still there {0:?} after they were killed")]
    Undead(Duration),
}
