//! A logger: a program of the host that reads a container's output (containerd's
//! `runtime/v2/README.md` §logging).
//!
//! It reads standard output from descriptor 3 and standard error from 4, and closes 5 when it is
//! ready. It ends when both have ended.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use log::warn;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::sink::{LoggerCommand, Sink};
use super::{Owner, StdioError};
use crate::open_files;

/// How long a logger may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);

/// How long it may go on after the end of its input, and again after it was asked to end:
/// containerd's.
const END_PATIENCE: Duration = Duration::from_secs(12);

/// A logger that runs. One that is dropped is killed.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
}

impl Logger {
    /// Starts it; returns it with what standard output and error are written to.
    pub(super) async fn start(
        command: &LoggerCommand,
        owner: Owner<'_>,
    ) -> Result<(Self, Sink, Sink), StdioError> {
        let program = &command.program;
        let failed = |source| StdioError::Logger {
            program: program.clone(),
            source,
        };
        let (stdout, their_stdout) = output().map_err(failed)?;
        let (stderr, their_stderr) = output().map_err(failed)?;
        let (ready, their_ready) = io::pipe().map_err(failed)?;
        let ends = [their_stdout.into(), their_stderr.into(), their_ready.into()];
        let mappings = ends.into_iter().zip(3..);

        let mut logger = Command::new(program);
        logger
            .args(&command.args)
            .env_clear()
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        logger
            .as_std_mut()
            .fd_mappings(
                mappings
                    .map(|(parent_fd, child_fd)| FdMapping {
                        parent_fd,
                        child_fd,
                    })
                    .collect(),
            )
            .expect("three different descriptors do not collide");
        open_files::give(&mut logger);
        let child = logger.spawn().map_err(failed)?;
        // It holds our copies of the logger's ends.
        drop(logger);

        let mut ready = pipe::Receiver::from_owned_fd(ready.into()).map_err(failed)?;
        let told = tokio::time::timeout(READY_PATIENCE, ready.read_u8()).await;
        if told.is_err() {
            return Err(StdioError::LoggerNotReady {
                program: program.clone(),
                patience: READY_PATIENCE,
            });
        }
        Ok((Self { child }, stdout, stderr))
    }

    /// Waits until it ends, now that it has been told everything; is more and more urgent about it.
    pub(super) async fn end(mut self) {
        if self.ends_soon().await {
            return;
        }
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It is not reaped: the number is its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if !self.ends_soon().await {
            warn!("a logger went on after SIGTERM, and is killed");
            let _ = self.child.kill().await;
        }
    }

    async fn ends_soon(&mut self) -> bool {
        let ended = tokio::time::timeout(END_PATIENCE, self.child.wait());
        ended.await.is_ok()
    }
}

/// A pipe: what to write to, and the logger's end.
fn output() -> io::Result<(Sink, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let sender = pipe::Sender::from_owned_fd(writer.into())?;
    Ok((Box::new(sender), reader))
}
