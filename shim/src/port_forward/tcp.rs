//! Connections.

use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::rule::Rule;
use super::throttle::Throttle;
use super::{Guest, TOLD_PAUSE};
use crate::error::chain;

/// Connections at a time; more wait to be accepted, as with any busy server. The machine's vsock has
/// room for twice as many, so that streams are not crowded out.
const MAX_CONNECTIONS: usize = 512;

/// How long nothing is accepted after that has failed, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, guest: Guest, rule: Rule) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut told = Throttle::new(TOLD_PAUSE);
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return; // Never: the semaphore is not closed.
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let guest = guest.clone();
                connections.spawn(async move {
                    forward(client, &guest, rule).await;
                    drop(permit);
                });
            }
            Err(e) => {
                if told.passes() {
                    warn!("accept a connection to {}: {}", rule.host, chain(&e));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn forward(mut client: TcpStream, guest: &Guest, rule: Rule) {
    let mut container = match guest.connect(rule).await {
        Ok(container) => container,
        Err(reason) => {
            debug!("forward a connection to {}: {reason}", rule.host);
            // The client is told as by a port where nobody listens, not by an end of file.
            let _ = client.set_zero_linger();
            return;
        }
    };
    let _ = client.set_nodelay(true);
    // Each direction ends by itself: half-closed connections are passed on.
    if let Err(e) = copy_bidirectional(&mut client, &mut container).await {
        debug!("a connection to {} broke: {e}", rule.host);
        let _ = client.set_zero_linger();
    }
}
