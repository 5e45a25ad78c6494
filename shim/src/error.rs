//! How failures reach containerd: one ttrpc status, its message one line.

use ttrpc::Code;

use crate::log_lines::cleaned;

/// Why a task call failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// There is no such container or process.
    #[error("{0} not found")]
    NotFound(String),
    /// The process is over; containerd knows this wording.
    #[error("process already finished")]
    Finished,
    /// Its init is over, and nothing can be done in it.
    #[error("the container is not running")]
    NotRunning,
    /// There is one of that name.
    #[error("{0} already exists")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    Precondition(String),
    /// The request cannot be carried out by anyone.
    #[error("{0}")]
    Invalid(String),
    /// Not yet.
    #[error("{0} is not supported yet")]
    Unimplemented(&'static str),
    /// The agent refused, and has said why.
    #[error("{message}")]
    Agent {
        /// The agent's status code, passed on.
        code: Code,
        /// The agent's words.
        message: String,
    },
    /// Anything else, cause by cause.
    #[error("{0}")]
    Failed(String),
}

impl TaskError {
    /// A failure of the host's side, with all its causes on one line.
    #[must_use]
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(chain(error))
    }
}

/// An error and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

impl From<ttrpc::Error> for TaskError {
    /// What a call to the agent came back with. Its words are the guest's: see [`cleaned`].
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Agent {
                code: status.code.enum_value_or_default(),
                message: cleaned(&status.message.replace('\n', " ")),
            },
            other => Self::Failed(cleaned(&format!("ask the agent: {other}"))),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        let code = match &error {
            TaskError::NotFound(_) | TaskError::Finished => Code::NOT_FOUND,
            TaskError::Exists(_) => Code::ALREADY_EXISTS,
            TaskError::NotRunning | TaskError::Precondition(_) => Code::FAILED_PRECONDITION,
            TaskError::Invalid(_) => Code::INVALID_ARGUMENT,
            TaskError::Unimplemented(_) => Code::UNIMPLEMENTED,
            TaskError::Agent {
                code: Code::INTERNAL,
                ..
            }
            | TaskError::Failed(_) => Code::UNKNOWN,
            TaskError::Agent { code, .. } => *code,
        };
        Self::RpcStatus(ttrpc::get_status(code, error))
    }
}
