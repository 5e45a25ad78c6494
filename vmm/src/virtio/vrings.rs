//! The queues of a device that a daemon or the host's kernel serves, as these are told of them.

use virtio_queue::QueueT;

use crate::backend::vring::Vring;
use crate::virtio::queue::Queues;

/// Those that the driver has set up. All raise the device's one interrupt.
pub(super) fn vrings<'a>(queues: &'a Queues<'_>) -> Vec<Vring<'a>> {
    (0..)
        .zip(queues.rings().iter().zip(queues.kicks()))
        .filter(|(_, (ring, _))| ring.ready())
        .map(|(index, (ring, kick))| Vring {
            index,
            size: ring.size(),
            descriptors: ring.desc_table(),
            available: ring.avail_ring(),
            used: ring.used_ring(),
            next_available: ring.next_avail(),
            kick,
            call: queues.interrupt().line(),
        })
        .collect()
}
