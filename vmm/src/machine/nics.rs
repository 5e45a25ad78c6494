//! A machine's network cards, and who moves their frames.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_control::{Nic, RateLimit};

use super::build::{BuildError, limiter, slot};
use crate::backend::tap::TapFile;
use crate::backend::vhost_net::VhostFile;
use crate::bus::SharedSlot;
use crate::jail::Filters;
use crate::memory::Ram;
use crate::virtio::mmio::Mmio;
use crate::virtio::net::{Limits, Net, VhostNet};

/// A network card, which the control socket reaches besides the bus.
#[derive(Clone)]
pub(super) enum SharedNic {
    /// The event loop moves its frames.
    Own(Arc<Mutex<Mmio<Net<TapFile>>>>),
    /// The host's kernel does.
    Kernel(Arc<Mutex<Mmio<VhostNet<TapFile, VhostFile>>>>),
}

impl SharedNic {
    /// Makes the card, with its tap if it has one, and its threads, confined by `filters`. The kernel knows
    /// no limits, so frames that have some are the event loop's.
    ///
    /// # Errors
    /// When one of its descriptors is not what it should be, or the host lacks what it takes.
    pub(super) fn new(nic: Nic<OwnedFd>, ram: &Ram, filters: Filters) -> Result<Self, BuildError> {
        let unlimited = [nic.receive_limit, nic.transmit_limit] == [RateLimit::default(); 2];
        let this = if let Some(file) = nic.vhost.filter(|_| unlimited) {
            let vhost = VhostFile::new(file, ram.clone())?;
            Self::Kernel(slot(VhostNet::new(nic.mac.0, nic.mtu, vhost)?, ram)?)
        } else {
            let limits = Limits {
                receive: limiter(nic.receive_limit)?,
                transmit: limiter(nic.transmit_limit)?,
            };
            let card = slot(Net::new(nic.mac.0, nic.mtu, nic.pairs, limits)?, ram)?;
            let mut slot = card.lock().unwrap_or_else(PoisonError::into_inner);
            let started = slot.device().start_threads(filters);
            started.map_err(|source| BuildError::Host {
                what: "start a network card's threads",
                source,
            })?;
            drop(slot);
            Self::Own(card)
        };
        if !nic.taps.is_empty() {
            this.plug(nic.taps)?;
        }
        Ok(this)
    }

    /// Connects the card to descriptors that have to be those of a tap, one for each pair of queues, in
    /// place of the one it may have had.
    ///
    /// # Errors
    /// When they are none, too many or too few, or not taken.
    pub(super) fn plug(&self, taps: Vec<OwnedFd>) -> Result<(), BuildError> {
        let taps: Vec<_> = taps
            .into_iter()
            .map(TapFile::new)
            .collect::<Result<_, _>>()?;
        match self {
            Self::Own(card) => {
                let mut slot = card.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(slot.device().plug(taps)?)
            }
            Self::Kernel(card) => {
                let mut slot = card.lock().unwrap_or_else(PoisonError::into_inner);
                slot.device().plug(taps)?;
                // The kernel has forgotten what it was told while there was no tap.
                slot.notify_again();
                Ok(())
            }
        }
    }

    /// The card on the bus.
    pub(super) fn slot(&self) -> SharedSlot {
        match self {
            Self::Own(card) => card.clone(),
            Self::Kernel(card) => card.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use vm_memory::GuestAddress;
    use vmm_control::{MacAddress, TokenBucket};

    use super::*;
    use crate::memory;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn card(transmit_limit: RateLimit) -> Result<SharedNic, BuildError> {
        let ram = memory::allocate(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let nic = Nic {
            pairs: 1,
            taps: vec![],
            vhost: Some(null()),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: None,
            receive_limit: RateLimit::default(),
            transmit_limit,
        };
        SharedNic::new(nic, &ram, Filters::unjailed())
    }

    #[test]
    fn what_is_not_vhost_net_makes_no_card() {
        let refused = card(RateLimit::default()).err();
        assert!(matches!(refused, Some(BuildError::Vhost(_))));
    }

    #[test]
    fn a_card_with_a_limit_has_its_frames_moved_here() {
        let bucket = TokenBucket {
            per_second: NonZeroU64::MIN,
            burst: 1,
        };
        let limit = RateLimit {
            bytes: Some(bucket),
            operations: None,
        };
        assert!(matches!(card(limit), Ok(SharedNic::Own(_))));
    }
}
