//! Every register in every state.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::registers::*;
use super::*;
use crate::memory;
use crate::virtio::device::DeviceId;
use crate::virtio::mem::{Backing, Mem};
use crate::virtio::queue::QueueError;
use crate::virtio::queue::testing::{Buffer, Driver};
use vm_memory::{Bytes, GuestAddress};

/// Where drivers read.
const PAGE: u64 = 0xd000_0000;

/// A device that counts what it is told.
struct Probe {
    id: DeviceId,
    /// What is added to each byte of the configuration space.
    config: u8,
    activations: usize,
    served: usize,
    resets: usize,
    halts: usize,
    broken: bool,
    backend: Option<UnixStream>,
    /// Where its driver reads, and what that finds in `InterruptStatus` during the activation.
    shown: Option<Ram>,
    status_seen: Option<u32>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            id: DeviceId::Entropy,
            config: 0,
            activations: 0,
            served: 0,
            resets: 0,
            halts: 0,
            broken: false,
            backend: None,
            shown: None,
            status_seen: None,
        }
    }
}

impl Device for Probe {
    fn id(&self) -> DeviceId {
        self.id
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        1 << 3
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let place = u8::try_from(offset.saturating_add(index)).unwrap_or(0);
            *byte = place.wrapping_add(self.config);
        }
    }
    fn activate(&mut self, _: u64, _: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.activations += 1;
        let at = GuestAddress(PAGE + INTERRUPT_STATUS);
        let shown = self.shown.as_ref().unwrap();
        self.status_seen = Some(shown.load(at, Ordering::SeqCst).unwrap());
        Ok(())
    }
    fn reset(&mut self) {
        self.resets += 1;
    }
    fn halt(&mut self) {
        self.halts += 1;
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

/// One whose driver can read it both ways.
fn device() -> Mmio<Probe> {
    let ram = memory::allocate(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let shown = memory::beside(&ram, GuestAddress(PAGE), 0x1000).unwrap();
    let probe = Probe {
        shown: Some(shown.clone()),
        ..Probe::default()
    };
    let mut mmio = Mmio::new(probe, ram).unwrap();
    mmio.show_in(RegisterPage::new(shown, PAGE).unwrap());
    mmio
}

/// Both ways lead to the same, for every register and the beginning of the configuration space.
fn assert_shown(mmio: &mut Mmio<Probe>) {
    for offset in (0..0x200).step_by(4) {
        let mut data = [0; 4];
        mmio.read(offset, &mut data);
        let shown = mmio.page.as_ref().unwrap().read(offset);
        assert_eq!(shown, u32::from_le_bytes(data), "{offset:#x}");
    }
}

fn get<D: Device>(mmio: &mut Mmio<D>, offset: u64) -> u32 {
    let mut data = [0; 4];
    mmio.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn set<D: Device>(mmio: &mut Mmio<D>, offset: u64, value: u32) {
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
                    assert_shown(&mut mmio);
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

/// virtio 1.3 §4.2.2.2: "To stop using the queue the driver MUST write zero (0x0) to this QueueReady and MUST
/// read the value back".
#[test]
fn a_queue_can_be_given_up_and_set_up_anew_before_the_device_is_live() {
    let mut mmio = at(11);
    for address in [0x1000, 0x8000] {
        set(&mut mmio, QUEUE_DESC_LOW, address);
        set(&mut mmio, QUEUE_READY, 1);
        assert_eq!(get(&mut mmio, QUEUE_READY), 1);
        assert_eq!(mmio.rings[0].desc_table(), u64::from(address));
        set(&mut mmio, QUEUE_READY, 0);
        assert_eq!(get(&mut mmio, QUEUE_READY), 0);
        assert_shown(&mut mmio);
    }
    // One that is not there.
    set(&mut mmio, QUEUE_SEL, 2);
    set(&mut mmio, QUEUE_READY, 0);
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
    assert_eq!(mmio.counters().failures, 1);
    set(&mut mmio, STATUS, 0);
    assert_eq!((get(&mut mmio, STATUS), mmio.device.resets), (0, 1));
    assert!(mmio.rings.iter().all(|ring| !ring.ready()));
}

/// Its threads are to leave the driver's memory alone, whatever ended it.
#[test]
fn a_device_is_halted_as_soon_as_it_is_not_live() {
    type End = fn(&mut Mmio<Probe>);
    let ends: [End; 4] = [
        |mmio| {
            mmio.device.broken = true;
            mmio.kicked(0);
        },
        |mmio| mmio.withdraw("it is gone"),
        |mmio| set(mmio, STATUS, 15 | crate::virtio::status::FAILED),
        |mmio| set(mmio, STATUS, 0),
    ];
    for end in ends {
        let mut mmio = at(15);
        mmio.device.halts = 0;
        mmio.kicked(0);
        assert_eq!(mmio.device.halts, 0);
        end(&mut mmio);
        assert!(mmio.device.halts > 0);
    }
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
        // A driver that gives up is not served either: the loop would spin.
        advance(&mut mmio, 15);
        set(&mut mmio, STATUS, 15 | crate::virtio::status::FAILED);
        assert!(!heard(&mmio), "its driver failed");
        set(&mut mmio, STATUS, 0);
    }
}

#[test]
fn a_flood_of_notifications_is_one_turn_and_none_for_queues_that_are_not_there() {
    let mut mmio = at(15);
    while mmio.notifications().iter().any(|kick| kick.read().is_ok()) {}
    for queue in [0, 1, 2, 0xffff, u32::MAX] {
        for _ in 0..10_000 {
            set(&mut mmio, QUEUE_NOTIFY, queue);
        }
    }
    for queue in [0, 1] {
        // As the event loop does: it sees readiness, not a number.
        mmio.kicked(queue);
        assert!(mmio.notifications()[queue].read().is_err(), "another turn");
    }
    assert_eq!(mmio.device.served, 2);
}

#[test]
fn a_change_of_the_configuration_is_told_until_it_is_acknowledged() {
    let mut mmio = at(15);
    let line = mmio.line().try_clone().unwrap();
    assert_eq!(get(&mut mmio, INTERRUPT_STATUS), USED_BUFFER);
    mmio.config_changed();
    assert_eq!(line.read().unwrap(), 1);
    let both = USED_BUFFER | CONFIG_CHANGE;
    // KVM may have taken the first of these, or not.
    for (acknowledged, left) in [(0, both), (USED_BUFFER, both), (both, USED_BUFFER)] {
        set(&mut mmio, INTERRUPT_ACK, acknowledged);
        assert_eq!(get(&mut mmio, INTERRUPT_STATUS), left);
        assert_shown(&mut mmio);
    }
}

#[test]
fn what_the_hosts_side_changes_is_shown_at_once() {
    let mut mmio = at(15);
    mmio.device().id = DeviceId::Block;
    assert_shown(&mut mmio);
    assert_eq!(get(&mut mmio, DEVICE_ID), DeviceId::Block as u32);
    mmio.device.config = 7;
    mmio.kicked(0);
    assert_shown(&mut mmio);
    mmio.device.config = 9;
    mmio.config_changed();
    assert_shown(&mut mmio);
}

#[test]
fn an_interrupt_during_activation_finds_that_a_buffer_may_be_used() {
    let mut mmio = at(11);
    assert_eq!(mmio.device.status_seen, None);
    advance(&mut mmio, 15);
    assert_eq!(mmio.device.status_seen, Some(USED_BUFFER));
}

/// Linux takes `plugged_size` for what it was told, and warns of another.
#[test]
fn the_configuration_that_a_request_changes_is_shown_before_its_answer() {
    struct Mapped;
    impl Backing for Mapped {
        fn map(&mut self, _: GuestAddress, _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    const START: u64 = 0x1000_0000;
    const BLOCK: u32 = 2 << 20;
    const BLOCKS: u16 = 128;
    let plugged_size = GuestAddress(PAGE + CONFIG + 40);

    for _ in 0..20 {
        let mut driver = Driver::new(&[64]);
        let shown = memory::beside(&driver.ram, GuestAddress(PAGE), 0x1000).unwrap();
        let mut device = Mem::new(Mapped, GuestAddress(START), 256 << 20);
        device.request(256).unwrap();
        let mut mmio = Mmio::new(device, driver.ram.clone()).unwrap();
        mmio.show_in(RegisterPage::new(shown.clone(), PAGE).unwrap());
        let rings = driver.rings(0);
        let [descriptors, available, used] = rings.map(|ring| u32::try_from(ring).unwrap());
        for (register, value) in [
            (STATUS, 1),
            (STATUS, 3),
            (DRIVER_FEATURES_SEL, 1),
            (DRIVER_FEATURES, 1),
            (STATUS, 11),
            (QUEUE_SIZE, 64),
            (QUEUE_DESC_LOW, descriptors),
            (QUEUE_DRIVER_LOW, available),
            (QUEUE_DEVICE_LOW, used),
            (QUEUE_READY, 1),
            (STATUS, 15),
        ] {
            set(&mut mmio, register, value);
        }

        let ram = driver.ram.clone();
        let used_idx = GuestAddress(rings[2] + 2);
        let (tell, looks) = mpsc::channel();
        let looking = std::thread::spawn(move || {
            tell.send(()).unwrap();
            loop {
                let index: u16 = ram.load(used_idx, Ordering::Acquire).unwrap();
                let plugged: u32 = shown.load(plugged_size, Ordering::SeqCst).unwrap();
                if plugged < u32::from(index) * BLOCK || index == BLOCKS {
                    return (index, plugged);
                }
            }
        });
        looks.recv().unwrap();
        for number in 0..BLOCKS {
            let block = START + u64::from(number) * u64::from(BLOCK);
            let mut request = [0; 24];
            request[8..16].copy_from_slice(&block.to_le_bytes());
            request[16] = 1;
            driver.add(0, &[Buffer::Readable(&request), Buffer::Writable(10)]);
            // As many as the queue has room for.
            if driver.free(0) == 0 {
                mmio.kicked(0);
                while driver.used(0).is_some() {}
            }
        }
        let seen = looking.join().unwrap();
        assert_eq!(seen, (BLOCKS, u32::from(BLOCKS) * BLOCK));
    }
}

/// virtio 1.3 §2.7.10: with EVENT_IDX, and with indirect descriptors, as Linux has both.
#[test]
fn the_rings_features_are_offered_and_followed() {
    for (event_idx, bits) in [(true, 1 << 29 | 1 << 28), (false, 1 << 28)] {
        let mut mmio = device();
        for step in [1, 3] {
            set(&mut mmio, STATUS, step);
        }
        assert_eq!(get(&mut mmio, DEVICE_FEATURES) & bits, bits);
        set(&mut mmio, DRIVER_FEATURES, bits);
        advance(&mut mmio, 15);
        assert!(
            mmio.rings
                .iter()
                .all(|ring| ring.event_idx_enabled() == event_idx)
        );
    }
}

#[test]
fn the_configuration_space_begins_at_0x100() {
    let mut mmio = at(0);
    let mut data = [0; 2];
    mmio.read(0x107, &mut data);
    assert_eq!(data, [7, 8]);
}

#[test]
fn a_device_that_is_withdrawn_is_not_served_before_a_reset() {
    let mut mmio = at(0);
    mmio.withdraw("gone");
    assert_eq!(get(&mut mmio, STATUS), 0, "nobody drove it");

    let mut mmio = at(15);
    mmio.withdraw("gone");
    mmio.kicked(0);
    assert_eq!(mmio.device.served, 0);
    assert_ne!(
        get(&mut mmio, STATUS) & crate::virtio::status::NEEDS_RESET,
        0
    );
    set(&mut mmio, STATUS, 0);
    assert_eq!(get(&mut mmio, STATUS), 0);
}
