//! Virtio over memory-mapped registers (virtio 1.3 §4.2, version 2).
//!
//! The transport owns status, features, queues, notifications and interrupts. Registers are 32 bits
//! wide (§4.2.2.2); an access of another width, or to a register that is not there, reads zero and writes
//! nothing. A register that may not be written in the device's state is left as it is.
//!
//! The driver's loads come here, or to a page that has the same words (`bus::RegisterPage`) and any width of
//! them. Its stores come here but for the frequent ones, which KVM takes: notifications, and
//! acknowledgements of used buffers.
//!
//! Threat: every value here is the guest's. Queue addresses are checked when the device goes live
//! and each time a ring is used; sizes are checked when written, and can't change afterwards.

mod gate;
mod registers;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_control::DeviceCounters;
use vmm_sys_util::eventfd::EventFd;

use self::gate::Gate;
use self::registers::{CONFIG, CONFIG_CHANGE, READABLE};
pub use self::registers::{INTERRUPT_ACK, QUEUE_NOTIFY, USED_BUFFER};
use crate::bus::{BusDevice, RegisterPage, Slot};
use crate::memory::Ram;
use crate::report;
use crate::virtio::device::{Device, DeviceError};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queues;
use crate::virtio::status::{Effect, Status};

/// A device on the bus.
pub struct Mmio<D> {
    device: D,
    ram: Ram,
    interrupt: Interrupt,
    /// Whether the driver has not acknowledged the last change of the configuration.
    config_change: bool,
    rings: Vec<Queue>,
    kicks: Vec<EventFd>,
    gate: Gate,
    status: Status,
    features_select: u32,
    driver_features: u64,
    driver_features_select: u32,
    queue_select: u32,
    /// Counts what the host's side has changed in the configuration space.
    generation: u32,
    /// How often only a reset helped.
    failures: u64,
    /// Where the driver reads, if it does not ask us.
    page: Option<RegisterPage>,
}

/// A device that its host's side changes: its driver sees it all once this is dropped.
pub struct Changing<'a, D: Device>(&'a mut Mmio<D>);

impl<D: Device> Deref for Changing<'_, D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.0.device
    }
}

impl<D: Device> DerefMut for Changing<'_, D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.0.device
    }
}

impl<D: Device> Drop for Changing<'_, D> {
    fn drop(&mut self) {
        self.0.show_all();
    }
}

impl<D: Device> Mmio<D> {
    /// Puts `device` behind registers.
    ///
    /// # Errors
    /// When no eventfd or epoll instance can be made.
    pub fn new(mut device: D, ram: Ram) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let interrupt = Interrupt::new(event()?);
        let sizes = device.queue_sizes();
        let rings = sizes
            .iter()
            .map(|&size| Queue::new(size).expect("devices name powers of two"))
            .collect();
        let kicks: Vec<_> = sizes.iter().map(|_| event()).collect::<Result<_, _>>()?;
        device.wire(&kicks, &interrupt)?;
        Ok(Self {
            device,
            ram,
            interrupt,
            config_change: false,
            rings,
            kicks,
            gate: Gate::new()?,
            status: Status::default(),
            features_select: 0,
            driver_features: 0,
            driver_features_select: 0,
            queue_select: 0,
            generation: 0,
            failures: 0,
            page: None,
        })
    }

    /// The device itself.
    pub fn device(&mut self) -> Changing<'_, D> {
        Changing(self)
    }

    /// Takes the device from its driver, if it has one: nobody serves it before the driver's reset.
    pub fn withdraw(&mut self, reason: &str) {
        if self.status.is_live() {
            self.fail(&DeviceError::Backend(reason.to_owned()));
        }
    }

    /// Has whoever serves the queues look at all of them, as if the driver had notified: it may have
    /// done so when nobody could serve it.
    pub fn notify_again(&self) {
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
    }

    /// Tells the driver that the device's configuration has changed.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.status.is_live() {
            self.tell_of_config();
        } else {
            self.show_all();
        }
    }

    fn tell_of_config(&mut self) {
        self.config_change = true;
        self.show_all();
        self.interrupt.raise();
    }

    /// Has the driver read what is so now.
    fn show_all(&mut self) {
        if let Some(mut page) = self.page.take() {
            for register in READABLE {
                let word = self.read_register(register);
                page.show(register, word);
            }
            self.page = Some(page);
            self.show_config();
        }
    }

    /// The same of the configuration space, which is all that queues change.
    fn show_config(&mut self) {
        if let Some(page) = &mut self.page {
            page.show_config(|config| self.device.read_config(0, config));
        }
    }

    fn interrupt_status(&self) -> u32 {
        let used = if self.status.is_live() {
            USED_BUFFER
        } else {
            0
        };
        let config = if self.config_change { CONFIG_CHANGE } else { 0 };
        used | config
    }

    fn offered(&self) -> u64 {
        if self.device.external_queues() {
            return self.device.features();
        }
        self.device.features()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn selected(&self) -> Option<&Queue> {
        self.rings.get(self.queue_select as usize)
    }

    /// The selected queue, if the driver may set it up now.
    fn configurable(&mut self) -> Option<&mut Queue> {
        let ring = self.rings.get_mut(self.queue_select as usize)?;
        (self.status.configures_queues() && !ring.ready()).then_some(ring)
    }

    fn write_status(&mut self, value: u32) {
        match self.status.write(value, self.acceptable()) {
            Effect::None => {}
            Effect::Reset => self.reset(),
            Effect::Activate => self.activate(),
        }
        // A driver may give up (`FAILED`) at any time; nobody serves the device then.
        if !self.status.is_live() {
            self.device.halt();
            self.gate.close(self.device.backend());
        }
    }

    fn activate(&mut self) {
        // An interrupt may come before this is over, and its handler reads `InterruptStatus`.
        self.show_all();
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for ring in &mut self.rings {
            ring.set_event_idx(event_idx);
        }
        let valid = self
            .rings
            .iter()
            .all(|ring| !ring.ready() || ring.is_valid(&self.ram));
        let features = self.driver_features;
        if !valid {
            self.fail(&DeviceError::Backend(
                "a queue lies outside of memory".into(),
            ));
            return;
        }
        self.with_queues(|device, queues| device.activate(features, queues));
        if self.status.is_live()
            && let Err(e) = self.gate.open(self.device.backend())
        {
            self.fail(&DeviceError::Backend(format!("watch a backend: {e}")));
            return;
        }
        // The driver may have notified before it was ready, and need not do so again.
        self.notify_again();
    }

    fn reset(&mut self) {
        self.gate.close(self.device.backend());
        self.device.reset();
        self.rings.iter_mut().for_each(QueueT::reset);
        for kick in &self.kicks {
            let _ = kick.read();
        }
        self.config_change = false;
        self.features_select = 0;
        self.driver_features = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
    }

    fn with_queues(
        &mut self,
        work: impl FnOnce(&mut D, &mut Queues<'_>) -> Result<(), DeviceError>,
    ) {
        let mut queues = Queues::new(&self.ram, &mut self.rings, &self.kicks, &self.interrupt)
            .with_page(self.page.as_mut());
        match work(&mut self.device, &mut queues) {
            Ok(()) => self.show_config(),
            Err(error) => self.fail(&error),
        }
    }

    /// Tells the driver that only a reset helps (§2.1.2). Said once: a broken device does no work.
    fn fail(&mut self, error: &DeviceError) {
        let id = self.device.id();
        report::warn(format_args!(
            "{id:?} device needs a reset: {}",
            report::chain(error)
        ));
        self.status.needs_reset();
        self.failures += 1;
        self.device.halt();
        self.gate.close(self.device.backend());
        self.tell_of_config();
    }
}

impl<D: Device> BusDevice for Mmio<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device
                .read_config(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device
                .write_config(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
        self.show_all();
    }
}

impl<D: Device> Slot for Mmio<D> {
    fn show_in(&mut self, page: RegisterPage) {
        self.page = Some(page);
        self.show_all();
    }

    fn notifications(&self) -> &[EventFd] {
        &self.kicks
    }

    fn served_elsewhere(&self) -> bool {
        self.device.external_queues()
    }

    fn has_thread(&self, queue: usize) -> bool {
        self.device.has_thread(queue)
    }

    fn line(&self) -> &EventFd {
        self.interrupt.line()
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.device.backend().map(|_| self.gate.as_fd())
    }

    fn kicked(&mut self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            let _ = kick.read();
        }
        if self.status.is_live() {
            self.with_queues(|device, queues| device.serve(index, queues));
        }
    }

    fn backend_ready(&mut self) {
        if self.status.is_live() {
            self.with_queues(Device::serve_backend);
        }
    }

    fn counters(&self) -> DeviceCounters {
        let traffic = self.device.traffic();
        DeviceCounters {
            device_id: self.device.id() as u32,
            bytes_to_guest: traffic.to_guest,
            bytes_from_guest: traffic.from_guest,
            errors: traffic.errors,
            failures: self.failures,
        }
    }
}

#[cfg(test)]
mod tests;
