//! How many pairs of queues a card's driver uses. Linux's takes as many as there are processors online when it
//! finds the card (virtio_net.c, `virtnet_probe`), and that is one here: the others come later.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use agent_protocol::Interface;
use nix::unistd::{SysconfVar, sysconf};

use super::Namespace;
use crate::sys::{self, Channels};

/// A way to ask the drivers of the cards in a namespace.
pub(super) struct Drivers {
    socket: UnixDatagram,
    processors: u32,
}

impl Drivers {
    /// Those of a namespace; none where there is one processor, and nothing to be asked for, and none where
    /// they cannot be asked, which does as well.
    pub(super) fn of(namespace: &Namespace) -> Option<Self> {
        Self::open(namespace).unwrap_or_else(|error| {
            log::warn!("ask the drivers of network cards for their queues: {error}");
            None
        })
    }

    fn open(namespace: &Namespace) -> io::Result<Option<Self>> {
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.unwrap_or(1);
        let processors = u32::try_from(online).unwrap_or(1);
        if processors <= 1 {
            return Ok(None);
        }
        // Of any kind, as long as it is made there.
        let socket = namespace.inside(UnixDatagram::unbound)?;
        Ok(Some(Self { socket, processors }))
    }

    /// Has the driver of a card use a pair of queues for each processor, as far as there are. Without
    /// that all frames come by one, which does as well.
    pub(super) fn widen(&self, interface: &Interface) {
        let name = &interface.name;
        let socket = self.socket.as_fd();
        let widened = sys::channels(socket, name).and_then(|channels| {
            wanted(self.processors, channels)
                .map_or(Ok(()), |count| sys::set_channels(socket, name, count))
        });
        if let Err(error) = widened {
            log::warn!("have the driver of {name} use its queues: {error}");
        }
    }
}

/// How many pairs a driver is to use, unless it does.
fn wanted(processors: u32, channels: Channels) -> Option<u32> {
    let count = processors.min(channels.most);
    (count > 0 && count != channels.used).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_asked_for_as_many_pairs_as_processors_if_it_has_them_and_does_not_use_them() {
        for (processors, most, used, expected) in [
            (2, 4, 1, Some(2)),
            (8, 4, 1, Some(4)),
            (2, 4, 4, Some(2)),
            (4, 4, 4, None),
            (2, 1, 1, None),
            // One that knows no pairs.
            (2, 0, 0, None),
        ] {
            let channels = Channels { most, used };
            assert_eq!(wanted(processors, channels), expected, "{channels:?}");
        }
    }
}
