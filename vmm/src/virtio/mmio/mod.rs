//! Virtio over memory-mapped registers (virtio 1.3 §4.2, version 2).
//!
//! The transport owns status, features, queues, notifications and interrupts. Registers are 32 bits
//! wide; an access of another width, or to a register that is not there, reads zero and writes
//! nothing. A register that may not be written in the device's state is left as it is.
//!
//! The driver's loads come here, or to a page that has the same words (`bus::RegisterPage`) and any width of
//! them. Its stores come here but for the frequent ones, which KVM takes: notifications, and
//! acknowledgements of used buffers.
//!
//! Threat: every value here is the guest's. Queue addresses are checked when the device goes live
//! and each time a ring is used; sizes are checked when written, and can't change afterwards.

mod gate;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use self::gate::Gate;
use crate::bus::{BusDevice, RegisterPage, Slot};
use crate::memory::Ram;
use crate::report;
use crate::virtio::device::{Device, DeviceError};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queues;
use crate::virtio::status::{Effect, Status};

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
/// Where the driver notifies; ioeventfds take these writes before they reach us.
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
/// Where the driver acknowledges an interrupt; KVM takes [`USED_BUFFER`] alone before it reaches us.
pub const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_LEN_HIGH: u64 = 0x0b4;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// Those of them that read as something.
const READABLE: [u64; 12] = [
    MAGIC_VALUE,
    VERSION,
    DEVICE_ID,
    VENDOR_ID,
    DEVICE_FEATURES,
    QUEUE_SIZE_MAX,
    QUEUE_READY,
    INTERRUPT_STATUS,
    STATUS,
    SHM_LEN_LOW,
    SHM_LEN_HIGH,
    CONFIG_GENERATION,
];

/// `InterruptStatus` bit 0: the device used a buffer (§4.2.2).
///
/// It is set as long as the device is live. Whoever used a buffer, a daemon perhaps, raises the line and
/// no more, and a driver finds out in the ring which of them were used. So to acknowledge it changes
/// nothing, and need not reach us.
pub const USED_BUFFER: u32 = 1 << 0;
/// `InterruptStatus` bit 1: the configuration changed.
const CONFIG_CHANGE: u32 = 1 << 1;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// "HULL", little endian.
const VENDOR: u32 = 0x4c4c_5548;

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
    pub fn new(device: D, ram: Ram) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let interrupt = Interrupt::new(event()?);
        let sizes = device.queue_sizes();
        let rings = sizes
            .iter()
            .map(|&size| Queue::new(size).expect("devices name powers of two"))
            .collect();
        let kicks = sizes.iter().map(|_| event()).collect::<Result<_, _>>()?;
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
            // As long as any device's.
            let mut config = [0; 0x100];
            self.device.read_config(0, &mut config);
            let (words, _) = config.as_chunks();
            for (offset, word) in (CONFIG..).step_by(4).zip(words) {
                page.show(offset, u32::from_le_bytes(*word));
            }
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

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => self.device.id() as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => word(self.offered(), self.features_select),
            QUEUE_SIZE_MAX => self.selected().map_or(0, |ring| ring.max_size().into()),
            QUEUE_READY => self.selected().map_or(0, |ring| ring.ready().into()),
            INTERRUPT_STATUS => self.interrupt_status(),
            STATUS => self.status.bits(),
            // A length of all ones: there is no such shared memory region (§4.2.2).
            SHM_LEN_LOW | SHM_LEN_HIGH => u32::MAX,
            // A driver that reads a field in parts, or several, reads until this has not changed
            // meanwhile (§2.5.2).
            CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.features_select = value,
            DRIVER_FEATURES_SEL => self.driver_features_select = value,
            DRIVER_FEATURES if self.status.negotiates() => {
                set_word(
                    &mut self.driver_features,
                    self.driver_features_select,
                    value,
                );
            }
            QUEUE_SEL => self.queue_select = value,
            QUEUE_SIZE => {
                if let (Some(ring), Ok(size)) = (self.configurable(), u16::try_from(value)) {
                    ring.set_size(size);
                }
            }
            QUEUE_READY if value == 1 => {
                if let Some(ring) = self.configurable() {
                    ring.set_ready(true);
                }
            }
            // A write the ioeventfd did not take: of another width, or by a slow path.
            QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            INTERRUPT_ACK if value & CONFIG_CHANGE != 0 => self.config_change = false,
            STATUS => self.write_status(value),
            _ => self.write_address(offset, value),
        }
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let Some(ring) = self.configurable() else {
            return;
        };
        match offset {
            QUEUE_DESC_LOW => ring.set_desc_table_address(Some(value), None),
            QUEUE_DESC_HIGH => ring.set_desc_table_address(None, Some(value)),
            QUEUE_DRIVER_LOW => ring.set_avail_ring_address(Some(value), None),
            QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, Some(value)),
            QUEUE_DEVICE_LOW => ring.set_used_ring_address(Some(value), None),
            QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        match self.status.write(value, self.acceptable()) {
            Effect::None => {}
            Effect::Reset => self.reset(),
            Effect::Activate => self.activate(),
        }
        // A driver may give up (`FAILED`) at any time; nobody serves the device then.
        if !self.status.is_live() {
            self.gate.close(self.device.backend());
        }
    }

    fn activate(&mut self) {
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
        let mut queues = Queues::new(&self.ram, &mut self.rings, &self.kicks, &self.interrupt);
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
}

/// Half `select` of a 64-bit value; there are two.
fn word(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_word(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(half),
        1 => *value = (*value & 0xffff_ffff) | (u64::from(half) << 32),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
