//! The kernel's word that a namespace's network has changed.

use std::fs::File;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;

use super::NetworkError;
use super::namespace;

/// What is listened to.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Changes come in bursts: an engine that connects a container makes a dozen. One is told of when
/// nothing more has come for this long …
const QUIET: Duration = Duration::from_millis(50);

/// … or after this.
const LONGEST: Duration = Duration::from_secs(1);

/// Changes, told until this is dropped.
pub(super) struct Changes(Receiver<()>);

impl Changes {
    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Option<()> {
        self.0.recv().await
    }
}

/// Begins to listen in the namespace.
pub(super) async fn changes(of: &File) -> Result<Changes, NetworkError> {
    // One that was not looked at yet stands for all that follow.
    let (sender, receiver) = mpsc::channel(1);
    namespace::stay(of, move || async move {
        let listening = rtnetlink::new_multicast_connection(&GROUPS);
        let (connection, handle, mut messages) = listening.map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        Ok(async move {
            // As long as there is a handle the connection is open.
            let _handle = handle;
            loop {
                tokio::select! {
                    message = messages.next() => if message.is_none() { return },
                    () = sender.closed() => return,
                }
                let burst =
                    async { while let Ok(Some(_)) = timeout(QUIET, messages.next()).await {} };
                let _ = timeout(LONGEST, burst).await;
                // Full: somebody is about to look anyway.
                let _ = sender.try_send(());
            }
        })
    })
    .await?;
    Ok(Changes(receiver))
}
