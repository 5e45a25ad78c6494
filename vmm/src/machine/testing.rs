//! A machine without processors: what requests on the control socket do to its devices. For tests
//! and fuzz targets; never in the program.
#![expect(
    clippy::unwrap_used,
    reason = "what a test's own host refuses is a failure of the test"
)]

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm_control::{Channel, ExitReason};

use super::build::ControlDialler;
use super::counters::Counters;
use super::nics::SharedNic;
use super::run::{Reach, serve_control};
use crate::memory;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::mmio::Mmio;
use crate::virtio::net::{Limits, Net};
use crate::virtio::vsock::Vsock;

/// Devices, and the VMM's end of a control socket.
pub struct Headless {
    control: Arc<Channel>,
    counters: Arc<Counters>,
    reach: Reach,
}

impl Headless {
    /// One network card without a tap, a disk without a file, vsock, and a balloon; no driver has found them yet.
    #[must_use]
    pub fn new(control: Channel) -> Self {
        control.set_nonblocking().unwrap();
        let control = Arc::new(control);
        let counters = Arc::new(Counters::start(1));
        let ram = memory::allocate(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let dialler = ControlDialler {
            control: Arc::clone(&control),
            counters: Arc::clone(&counters),
        };
        let vsock = Vsock::new(3, Box::new(dialler)).unwrap();
        let net = Net::new([2, 0, 0, 0, 0, 1], None, 1, Limits::default()).unwrap();
        let balloon = Mmio::new(Balloon::new(), ram.clone()).unwrap();
        let disk = Blk::by_hand(1).unwrap();
        let disk = Arc::new(Mutex::new(Mmio::new(disk, ram.clone()).unwrap()));
        let reach = Reach {
            slots: vec![disk.clone()],
            disks: vec![disk],
            vsock: Arc::new(Mutex::new(Mmio::new(vsock, ram.clone()).unwrap())),
            nics: vec![SharedNic::Own(Arc::new(Mutex::new(
                Mmio::new(net, ram).unwrap(),
            )))],
            balloon: Some(Arc::new(Mutex::new(balloon))),
            memory: None,
        };
        Self {
            control,
            counters,
            reach,
        }
    }

    /// Serves some of what the shim has said; tells when that ends the machine.
    #[must_use]
    pub fn serve(&self) -> Option<ExitReason> {
        serve_control(&self.control, &self.counters, &self.reach)
    }

    /// The balloon's target in pages, as the driver would read it.
    #[must_use]
    pub fn balloon_target(&self) -> u32 {
        use crate::bus::BusDevice;

        let mut target = [0; 4];
        if let Some(balloon) = &self.reach.balloon {
            balloon.lock().unwrap().read(0x100, &mut target);
        }
        u32::from_le_bytes(target)
    }
}
