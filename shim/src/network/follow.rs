//! The kernel's word that a namespace's network has changed.

use std::fs::File;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::time::timeout;

use super::{NetworkError, namespace};

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
pub(super) struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// As long as it is there the connection is open.
    _handle: Handle,
}

impl Changes {
    /// Begins to listen in the namespace.
    pub(super) fn of(namespace: &File) -> Result<Self, NetworkError> {
        let listen = || rtnetlink::new_multicast_connection(&GROUPS).map_err(NetworkError::Socket);
        let (connection, handle, messages) = namespace::inside(namespace, listen)?;
        tokio::spawn(connection);
        Ok(Self {
            messages,
            _handle: handle,
        })
    }

    /// Waits for the next one; `None` when there will be none any more.
    pub(super) async fn next(&mut self) -> Option<()> {
        self.messages.next().await?;
        let burst = async { while let Ok(Some(_)) = timeout(QUIET, self.messages.next()).await {} };
        let _ = timeout(LONGEST, burst).await;
        Some(())
    }
}
