//! What is wrong, in runc's words where a caller looks for them: Podman and go-runc read the text.

use std::io;
use std::path::PathBuf;

use ttrpc::Code;

use crate::bundle::BundleError;

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    /// There is none of that name.
    #[error("container does not exist")]
    NoContainer,
    /// There is one of that name.
    #[error("container with given ID already exists")]
    Exists,
    /// A name that cannot be a folder's.
    #[error("invalid container ID format: {0:?}; use letters, digits and _ + - .")]
    Id(String),
    /// It is over, or the machine is.
    #[error("container not running")]
    NotRunning,
    /// It is not over.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// Which one.
        id: String,
        /// What it does.
        status: &'static str,
    },
    /// No such signal.
    #[error("unknown signal {0:?}")]
    Signal(String),
    /// Options or a configuration that make no sense here.
    #[error("{0}")]
    Refused(String),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file, folder, pipe or process.
    #[error("{what} {}", path.display())]
    File {
        /// What was to be done with it.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A terminal or a signal.
    #[error("{what}")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The shim does not start, or does not clean up.
    #[error("{program} {action}: {said}", program = program.display())]
    Shim {
        /// The program.
        program: PathBuf,
        /// What it was to do.
        action: &'static str,
        /// Its last words.
        said: String,
    },
    /// The shim has refused.
    #[error("{0}")]
    Task(String),
    /// The shim does not answer.
    #[error("ask the container's shim: {0}")]
    Lost(String),
    /// A text that is no JSON of its kind.
    #[error("{} is no OCI {what} object", path.display())]
    Json {
        /// What it should be.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl OciError {
    /// An error of a file or folder.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// An error of the kernel.
    pub(super) fn kernel<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel {
            what,
            source: source.into(),
        }
    }
}

impl From<ttrpc::Error> for OciError {
    /// What a call to the shim came back with.
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => match status.code.enum_value_or_default() {
                Code::NOT_FOUND => Self::NotRunning,
                _ => Self::Task(status.message),
            },
            other => Self::Lost(other.to_string()),
        }
    }
}
