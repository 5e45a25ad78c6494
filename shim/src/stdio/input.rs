//! A process's input: a named pipe whose end has to be the right one's.
//!
//! ```text
//! Open ──Start──▶ Held ──CloseIO──▶ Released
//!   └──Start, its writer has gone already──▲
//! ```
//! From Start on the input has a writer of ours, so that a client may leave and another come; it
//! ends when CloseIO was called and all writers are gone. Before Start nobody can have called CloseIO
//! (`ctr run` forgets to when its own input is at its end that early, and hangs on runc): there a
//! writer's leaving is the end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::{StdioError, sink};
use crate::ports::Expected;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) enum Input {
    /// Nobody of ours writes: the reader's descriptor.
    Open(OwnedFd),
    /// Our own end for writing keeps the pipe from ending.
    Held { _writer: File },
    /// It ends with its last writer, or there is none.
    #[default]
    Released,
}

impl Input {
    pub(super) fn hold(&mut self) {
        let Self::Open(reader) = self else {
            return;
        };
        *self = match hold(reader) {
            Ok(Some(writer)) => Self::Held { _writer: writer },
            Ok(None) => Self::Released,
            Err(e) => {
                warn!("hold standard input open: {e}");
                Self::Released
            }
        };
    }
}

/// Opens a named pipe to read from, if there is one.
pub(super) fn open(path: &str) -> Result<Option<(pipe::Receiver, Input)>, StdioError> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = sink::local(path)?;
    let opened = pipe::OpenOptions::new()
        .open_receiver(path)
        .and_then(|reader| Ok((reader.as_fd().try_clone_to_owned()?, reader)));
    match opened {
        Ok((descriptor, reader)) => Ok(Some((reader, Input::Open(descriptor)))),
        Err(source) => Err(StdioError::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opens the pipe for writing, unless its last writer has gone: fifo(7) tells that by a hang-up, and
/// none of a pipe that nobody has opened yet.
fn hold(reader: &OwnedFd) -> io::Result<Option<File>> {
    let mut polled = [PollFd::new(reader, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    if polled[0].revents().contains(PollFlags::HUP) {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    // Does not wait: there is a reader.
    OpenOptions::new().write(true).open(path).map(Some)
}

/// Copies the pipe to the guest, when that has connected.
pub(super) async fn copy(mut pipe: pipe::Receiver, expected: Expected) {
    let Ok(mut socket) = expected.connected().await else {
        return;
    };
    // Fails when the process has closed its input: what it does not want is nobody's.
    if super::copy(&mut pipe, &mut socket).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}
