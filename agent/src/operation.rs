//! A blocking call in a process of its own.
//!
//! libcontainer forks, waits, changes directory and clears `PR_SET_DUMPABLE`; a hostile file system
//! can make it wait. So each of its operations runs in a child of the agent, which sends back one
//! message. Whatever the operation started is then an orphan, and thus the agent's own child.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::OFlag;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::reaper::Reaper;
use crate::sys;

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// No process for it.
    #[error("start a process to {what}")]
    Start {
        /// The operation.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// It said so itself.
    #[error("{what}: {message}")]
    Failed {
        /// The operation.
        what: &'static str,
        /// The cause, and its causes.
        message: String,
    },
    /// Its process was killed or crashed.
    #[error("the process to {what} ended without an answer, status {status}")]
    Died {
        /// The operation.
        what: &'static str,
        /// Exit status, or 128 + signal.
        status: u32,
    },
}

/// Does `work` in a child that has of the agent's descriptors only those in `keep`, and returns
/// what it returned.
///
/// # Errors
/// All of `OperationError`; `work` words its own failure.
pub async fn run<T: Serialize + DeserializeOwned>(
    reaper: &Reaper,
    what: &'static str,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T, String>,
) -> Result<T, OperationError> {
    let start = |source| OperationError::Start { what, source };
    let (answer, mut exit) = {
        let _expectation = reaper.expect();
        let (answer, writer) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| start(errno.into()))?;
        let keep: Vec<_> = keep.iter().copied().chain([writer.as_fd()]).collect();
        let pid = sys::fork(&keep, || {
            log::set_max_level(log::LevelFilter::Off);
            let answer = serde_json::to_vec(&work()).unwrap_or_default();
            // Without a reader there is nobody to tell.
            let written = writer.try_clone().map(File::from);
            written
                .and_then(|mut pipe| send(&mut pipe, &answer))
                .map_or(1, |()| 0)
        })
        .map_err(start)?;
        (answer, reaper.exit_of(pid))
    };

    let mut answer = pipe::Receiver::from_owned_fd(answer).map_err(start)?;
    // The pipe's end tells nothing: a container's init, forked by the operation, has it open until
    // it executes its program. The operation's own end does; its answer is there before that.
    let (received, ended) = tokio::select! {
        biased;
        received = receive(&mut answer) => (received.ok(), None),
        ended = &mut exit => (None, Some(ended)),
    };
    if let Some(Ok(answer)) = received.map(|message| serde_json::from_slice(&message)) {
        return Result::map_err(answer, |message| OperationError::Failed { what, message });
    }
    let ended = match ended {
        Some(ended) => ended,
        None => exit.await,
    };
    let status = ended.map_or(255, |exit| exit.status);
    Err(OperationError::Died { what, status })
}

/// Writes a message behind its length.
fn send(pipe: &mut File, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    pipe.write_all(&length.to_le_bytes())?;
    pipe.write_all(message)
}

/// Reads what `send` wrote.
async fn receive(pipe: &mut pipe::Receiver) -> io::Result<Vec<u8>> {
    let length = pipe.read_u32_le().await?;
    let mut message = Vec::new();
    pipe.take(length.into()).read_to_end(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_comes_from_another_process() {
        let reaper = Reaper::start().unwrap();

        let pid = run(&reaper, "tell its id", &[], || Ok(std::process::id()))
            .await
            .unwrap();

        assert_ne!(pid, std::process::id());
    }

    #[tokio::test]
    async fn a_failure_is_named() {
        let reaper = Reaper::start().unwrap();

        let failed = run::<()>(&reaper, "fail", &[], || Err("no luck".into())).await;

        assert_eq!(failed.unwrap_err().to_string(), "fail: no luck");
    }

    #[tokio::test]
    async fn a_crash_is_not_an_answer() {
        let reaper = Reaper::start().unwrap();

        let died = run::<()>(&reaper, "crash", &[], || std::process::exit(9)).await;

        assert!(matches!(died, Err(OperationError::Died { status: 9, .. })));
    }
}
