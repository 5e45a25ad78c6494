//! Virtio over memory-mapped registers (virtio 1.3 §4.2, version 2).
//!
//! The transport owns status, features, queues, notifications and interrupts. Registers are 32 bits
//! wide; an access of another width, or to a register that is not there, reads zero and writes
//! nothing. A register that may not be written in the device's state is left as it is.
//!
//! Threat: every value here is the guest's. Queue addresses are checked when the device goes live
//! and each time a ring is used; sizes are checked when written, and can't change afterwards.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Slot};
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
const INTERRUPT_ACK: u64 = 0x064;
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

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// "HULL", little endian.
const VENDOR: u32 = 0x4c4c_5548;

/// A device on the bus.
pub struct Mmio<D> {
    device: D,
    ram: Ram,
    interrupt: Interrupt,
    rings: Vec<Queue>,
    kicks: Vec<EventFd>,
    gate: Gate,
    status: Status,
    features_select: u32,
    driver_features: u64,
    driver_features_select: u32,
    queue_select: u32,
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
            rings,
            kicks,
            gate: Gate::new()?,
            status: Status::default(),
            features_select: 0,
            driver_features: 0,
            driver_features_select: 0,
            queue_select: 0,
        })
    }

    /// The device itself.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
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
            INTERRUPT_STATUS if self.device.external_queues() => self.interrupt.status() | 1,
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS => self.status.bits(),
            // A length of all ones: there is no such shared memory region (§4.2.2).
            SHM_LEN_LOW | SHM_LEN_HIGH => u32::MAX,
            // No device of ours changes its configuration while it is live.
            CONFIG_GENERATION => 0,
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
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
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
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
    }

    fn reset(&mut self) {
        self.gate.close(self.device.backend());
        self.device.reset();
        self.rings.iter_mut().for_each(QueueT::reset);
        for kick in &self.kicks {
            let _ = kick.read();
        }
        self.interrupt.acknowledge(u32::MAX);
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
        if let Err(error) = work(&mut self.device, &mut queues) {
            self.fail(&error);
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
        self.interrupt.config_changed();
    }
}

/// Lets the event loop hear a device's backend only while the device is live. A tap may have frames
/// and a daemon may die at any time; while nobody serves the device, the loop would spin.
struct Gate {
    epoll: OwnedFd,
    open: bool,
}

impl Gate {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, open: false })
    }

    fn open(&mut self, backend: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if let Some(backend) = backend {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&self.epoll, backend, data, epoll::EventFlags::IN)?;
            self.open = true;
        }
        Ok(())
    }

    fn close(&mut self, backend: Option<BorrowedFd<'_>>) {
        if self.open
            && let Some(backend) = backend
        {
            // It fails only for a descriptor that is not there.
            let _ = epoll::delete(&self.epoll, backend);
            self.open = false;
        }
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
    }
}

impl<D: Device> Slot for Mmio<D> {
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
        self.device.backend().map(|_| self.gate.epoll.as_fd())
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
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::memory;
    use crate::virtio::device::DeviceId;
    use crate::virtio::queue::QueueError;
    use vm_memory::GuestAddress;

    /// A device that counts what it is told.
    #[derive(Default)]
    struct Probe {
        activations: usize,
        served: usize,
        resets: usize,
        broken: bool,
        backend: Option<UnixStream>,
    }

    impl Device for Probe {
        fn id(&self) -> DeviceId {
            DeviceId::Entropy
        }
        fn queue_sizes(&self) -> &[u16] {
            &[16, 8]
        }
        fn features(&self) -> u64 {
            1 << 3
        }
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = u8::try_from(offset.saturating_add(index)).unwrap_or(0);
            }
        }
        fn activate(&mut self, _: u64, _: &mut Queues<'_>) -> Result<(), DeviceError> {
            self.activations += 1;
            Ok(())
        }
        fn reset(&mut self) {
            self.resets += 1;
        }
        fn backend(&self) -> Option<BorrowedFd<'_>> {
            self.backend.as_ref().map(AsFd::as_fd)
        }
        fn serve(&mut self, index: usize, _: &mut Queues<'_>) -> Result<(), DeviceError> {
            self.served += 1;
            if self.broken {
                return Err(QueueError::Chain {
                    index,
                    what: "broken",
                }
                .into());
            }
            Ok(())
        }
    }

    fn device() -> Mmio<Probe> {
        let ram = memory::allocate(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Mmio::new(Probe::default(), ram).unwrap()
    }

    fn get(mmio: &mut Mmio<Probe>, offset: u64) -> u32 {
        let mut data = [0; 4];
        mmio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(mmio: &mut Mmio<Probe>, offset: u64, value: u32) {
        mmio.write(offset, &value.to_le_bytes());
    }

    /// Brings a fresh device to `status`, with both queues ready from `DRIVER_OK` on.
    fn at(status: u32) -> Mmio<Probe> {
        let mut mmio = device();
        advance(&mut mmio, status);
        mmio
    }

    fn advance(mmio: &mut Mmio<Probe>, status: u32) {
        for step in [1, 3, 11, 15] {
            if step > status {
                break;
            }
            if step == 11 {
                set(mmio, DRIVER_FEATURES_SEL, 1);
                set(mmio, DRIVER_FEATURES, 1);
            }
            if step == 15 {
                for (queue, base) in [(0, 0x1000), (1, 0x4000)] {
                    set(mmio, QUEUE_SEL, queue);
                    set(mmio, QUEUE_SIZE, 8);
                    set(mmio, QUEUE_DESC_LOW, base);
                    set(mmio, QUEUE_DRIVER_LOW, base + 0x1000);
                    set(mmio, QUEUE_DEVICE_LOW, base + 0x2000);
                    set(mmio, QUEUE_READY, 1);
                }
            }
            set(mmio, STATUS, step);
        }
        assert_eq!(get(mmio, STATUS), status);
    }

    const STATES: [u32; 5] = [0, 1, 3, 11, 15];
    const VALUES: [u32; 7] = [0, 1, 2, 7, 8, 0xffff, u32::MAX];

    #[test]
    fn the_magic_version_and_device_are_there_in_every_state() {
        for state in STATES {
            let mut mmio = at(state);
            assert_eq!(get(&mut mmio, MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
            assert_eq!(get(&mut mmio, VERSION), 2);
            assert_eq!(get(&mut mmio, DEVICE_ID), 4);
        }
    }

    #[test]
    fn no_register_at_any_width_in_any_state_panics_or_leaves_the_state_machine() {
        for state in STATES {
            for offset in (0..0x200).chain([u64::MAX, u64::MAX - 0xff]) {
                for value in VALUES {
                    for width in [1, 2, 4, 8] {
                        let mut mmio = at(state);
                        let bytes = [value.to_le_bytes(), value.to_le_bytes()].concat();
                        mmio.write(offset, &bytes[..width]);
                        mmio.read(offset, &mut [0; 8][..width]);
                        mmio.kicked(0);
                        mmio.kicked(9);
                        let live = mmio.status.is_live();
                        assert!(
                            live || mmio.device.served == 0,
                            "{state} {offset:#x} {value:#x}"
                        );
                        let after = mmio.status.bits();
                        let expected = if offset == STATUS && width == 4 {
                            let mut status = at(state).status;
                            status.write(value, mmio_acceptable(state));
                            status.bits()
                        } else {
                            state
                        };
                        assert_eq!(after & !crate::virtio::status::NEEDS_RESET, expected & !64);
                    }
                }
            }
        }
    }

    /// Whether the device's features were chosen on the way to `state`.
    fn mmio_acceptable(state: u32) -> bool {
        state >= 11
    }

    #[test]
    fn cve_2026_5747_a_live_queue_keeps_its_size_and_addresses() {
        for (offset, value) in [
            (QUEUE_SIZE, 16),
            (QUEUE_READY, 0),
            (QUEUE_DESC_LOW, 0x8000),
            (QUEUE_DESC_HIGH, 1),
            (QUEUE_DRIVER_LOW, 0x8000),
            (QUEUE_DRIVER_HIGH, 1),
            (QUEUE_DEVICE_LOW, 0x8000),
            (QUEUE_DEVICE_HIGH, 1),
        ] {
            let mut mmio = at(15);
            set(&mut mmio, QUEUE_SEL, 0);
            let before = mmio.rings[0].state();
            set(&mut mmio, offset, value);
            assert_eq!(mmio.rings[0].state(), before, "{offset:#x}");
        }
    }

    #[test]
    fn features_can_be_chosen_only_while_they_are_negotiated() {
        for state in STATES {
            let mut mmio = at(state);
            let before = mmio.driver_features;
            set(&mut mmio, DRIVER_FEATURES_SEL, 0);
            set(&mut mmio, DRIVER_FEATURES, 1 << 3);
            let chosen = mmio.driver_features != before;
            assert_eq!(chosen, state == 3, "{state}");
        }
    }

    #[test]
    fn a_feature_that_was_not_offered_is_not_accepted() {
        let mut mmio = at(3);
        set(&mut mmio, DRIVER_FEATURES_SEL, 1);
        set(&mut mmio, DRIVER_FEATURES, 1 | 1 << 20);
        set(&mut mmio, STATUS, 11);
        assert_eq!(get(&mut mmio, STATUS), 3);
    }

    #[test]
    fn rings_outside_of_memory_need_a_reset_and_are_never_served() {
        let mut mmio = at(11);
        set(&mut mmio, QUEUE_SEL, 0);
        set(&mut mmio, QUEUE_DESC_HIGH, 0x7fff_ffff);
        set(&mut mmio, QUEUE_READY, 1);
        set(&mut mmio, STATUS, 15);
        mmio.kicked(0);
        assert_eq!(
            get(&mut mmio, STATUS),
            15 | crate::virtio::status::NEEDS_RESET
        );
        assert_eq!((mmio.device.activations, mmio.device.served), (0, 0));
    }

    #[test]
    fn a_broken_queue_stops_the_device_until_a_reset() {
        let mut mmio = at(15);
        mmio.device.broken = true;
        mmio.kicked(0);
        mmio.kicked(0);
        assert_eq!(mmio.device.served, 1);
        set(&mut mmio, STATUS, 0);
        assert_eq!((get(&mut mmio, STATUS), mmio.device.resets), (0, 1));
        assert!(mmio.rings.iter().all(|ring| !ring.ready()));
    }

    #[test]
    fn a_backend_is_heard_only_while_its_device_is_live() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"event").unwrap();
        let mut mmio = device();
        mmio.device.backend = Some(ours);
        let heard = |mmio: &Mmio<Probe>| {
            let backend = Slot::backend(mmio).unwrap();
            let mut fds = [PollFd::new(&backend, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
        };
        for _ in 0..2 {
            for (status, live) in [(11, false), (15, true)] {
                advance(&mut mmio, status);
                assert_eq!(heard(&mmio), live, "{status}");
            }
            mmio.device.broken = true;
            mmio.kicked(0);
            assert!(!heard(&mmio), "it is broken");
            mmio.device.broken = false;
            set(&mut mmio, STATUS, 0);
            assert!(!heard(&mmio), "it was reset");
        }
    }

    #[test]
    fn the_configuration_space_begins_at_0x100() {
        let mut mmio = at(0);
        let mut data = [0; 2];
        mmio.read(0x107, &mut data);
        assert_eq!(data, [7, 8]);
    }
}
