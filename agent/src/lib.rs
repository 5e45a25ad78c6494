//! PID 1 of a Hull guest: everything of it but the boot.
//!
//! ```text
//! serve ─▶ server ─▶ container ─▶ operation (a forked child: libcontainer) ─▶ launch ─▶ execve
//!             │          ├─▶ stdio    vsock ↔ pipes, terminals
//!             │          └─▶ cgroup   limits, freezing, memory kills
//!             ├─▶ network  cards become the container's interfaces
//!             ├─▶ forward  vsock ↔ the containers' ports
//!             ├─▶ listening  which ports those are, for a container with the host's network
//!             ├─▶ names    127.0.0.11:53 ↔ the engine's resolver on the host
//!             └─▶ shares, events, processes, clock      reaper: who ended, and how
//! ```
//! One thread. Nothing here waits in a system call that a container or the host can hold up: what
//! might, runs in an operation.

pub mod boot;
pub mod bpf;
pub mod cgroup;
pub mod clock;
pub mod connection;
pub mod container;
pub mod disks;
pub mod events;
pub mod forward;
pub mod host;
pub mod listening;
pub mod logging;
pub mod memory;
pub mod names;
pub mod network;
pub mod operation;
pub mod processes;
pub mod processors;
pub mod reaper;
pub mod server;
pub mod shares;
pub mod socket_programs;
pub mod stdio;
pub mod sys;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::create_agent;
use futures::stream::{self, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::connection::Connection;
use crate::container::Containers;
use crate::events::Events;
use crate::host::Host;
use crate::memory::Grants;
use crate::network::{Namespace, Networks};
use crate::reaper::Reaper;
use crate::server::Service;
use crate::shares::Shares;

/// How long the shim may take to hang up once it was told that everything is stopped.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// SIGCHLD cannot be received.
    #[error("start to reap")]
    Reaper(#[source] io::Error),
    /// ttrpc refused.
    #[error("serve the agent's protocol")]
    Ttrpc(#[source] ttrpc::Error),
}

/// Serves one shim, at the other end of `stream`, until it hangs up or has everything stopped.
///
/// The process must be its children's reaper (PID 1, or `PR_SET_CHILD_SUBREAPER`), and have one
/// thread. Streams of containers go to `host`. `cards` is the network namespace that the network cards
/// are in.
///
/// # Errors
/// All of `ServeError`.
pub async fn serve<S>(host: Host, cards: Namespace, stream: S) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let reaper = Reaper::start().map_err(ServeError::Reaper)?;
    let events = Arc::new(Events::default());
    let stopped = Arc::new(Notify::new());
    let grants = Arc::new(Grants::default());
    tokio::spawn(memory::manage(Arc::clone(&events), Arc::clone(&grants)));
    let service = Service {
        host,
        containers: Containers::new(host, reaper, Arc::clone(&events)),
        shares: Arc::new(Shares::default()),
        networks: Arc::new(Networks::new(cards)),
        names: Arc::default(),
        events,
        grants,
        processors: Arc::default(),
        stopped: Arc::clone(&stopped),
    };

    let (connection, mut hung_up) = Connection::new(stream);
    let connections = stream::iter([Ok(connection)]).chain(stream::pending());
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(create_agent(Arc::new(service)));
    server.start().await.map_err(ServeError::Ttrpc)?;

    tokio::select! {
        _ = &mut hung_up => {}
        () = stopped.notified() => {
            // The answer is on its way; a shim that has it hangs up.
            let _ = tokio::time::timeout(FAREWELL, hung_up).await;
        }
    }
    Ok(())
}

/// An error and its causes, as one line. A cause that the line ends with already is not repeated.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| {
        let cause = cause.to_string();
        if line.ends_with(&cause) {
            line
        } else {
            format!("{line}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_chain_says_everything_once() {
        let cause = |source| Some(Box::new(source));
        let disk = Layer {
            text: "disk full",
            source: None,
        };
        let write = Layer {
            text: "write it: disk full",
            source: cause(disk),
        };
        let save = Layer {
            text: "save",
            source: cause(write),
        };

        assert_eq!(error_chain(&save), "save: write it: disk full");
    }
}
