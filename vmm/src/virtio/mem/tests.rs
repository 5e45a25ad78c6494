use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::Bytes;

use super::request::RESPONSE_LEN;
use super::request::tests::bytes;
use super::*;
use crate::virtio::queue::testing::{Buffer, Driver};

/// Within the fake driver's memory, and untouched by its rings and buffers.
const START: u64 = 0x1000_0000;
const REGION: u64 = 256 << 20;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u8 = 0;
const NACK: u8 = 1;
const ERROR: u8 = 3;

/// What was made memory; refuses more than it may.
#[derive(Debug, Default)]
struct Fake {
    mapped: Vec<(u64, u64)>,
    full: bool,
}

impl Backing for Fake {
    fn map(&mut self, start: GuestAddress, length: u64) -> io::Result<()> {
        if self.full {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.mapped.push((start.0, length));
        Ok(())
    }
}

fn mem(mib: u32) -> Mem<Fake> {
    let mut mem = Mem::new(Fake::default(), GuestAddress(START), REGION);
    mem.request(mib).unwrap();
    mem
}

fn block(number: u64) -> u64 {
    START + number * BLOCK
}

fn add(driver: &mut Driver, request: &[u8]) {
    driver.add(
        REQUESTS,
        &[Buffer::Readable(request), Buffer::Writable(RESPONSE_LEN)],
    );
}

/// Asks once; the answer's kind and state.
fn ask(mem: &mut Mem<Fake>, driver: &mut Driver, request: (u16, u64, u16)) -> (u8, u8) {
    let (kind, address, blocks) = request;
    add(driver, &bytes(kind, address, blocks));
    mem.serve(REQUESTS, &mut driver.queues()).unwrap();
    while driver.kicked(REQUESTS) {
        mem.serve(REQUESTS, &mut driver.queues()).unwrap();
    }
    let used = driver.used(REQUESTS).unwrap();
    (used.written[0], used.written[8])
}

#[test]
fn blocks_are_plugged_up_to_what_was_asked_for_and_no_further() {
    let (mut mem, mut driver) = (mem(8), Driver::new(&QUEUE_SIZES));
    for (request, answer) in [
        ((STATE, block(0), 4), (ACK, 1)),
        ((PLUG, block(1), 3), (ACK, 0)),
        ((STATE, block(1), 3), (ACK, 0)),
        ((STATE, block(0), 2), (ACK, 2)),
        // Plugged already, in part.
        ((PLUG, block(0), 2), (ERROR, 0)),
        ((PLUG, block(4), 1), (ACK, 0)),
        // One more than 8 MiB have.
        ((PLUG, block(5), 1), (NACK, 0)),
        ((UNPLUG, block(4), 2), (ERROR, 0)),
        ((UNPLUG, block(4), 1), (ACK, 0)),
        ((PLUG, block(63), 1), (ACK, 0)),
        // Beyond the 128 MiB that are usable.
        ((STATE, block(64), 1), (ERROR, 0)),
        ((9, block(0), 1), (ERROR, 0)),
    ] {
        assert_eq!(ask(&mut mem, &mut driver, request), answer, "{request:?}");
    }
    assert_eq!(mem.plugged(), 8 << 20);
}

#[test]
fn what_is_unplugged_goes_back_to_the_host_and_is_zero_when_it_is_plugged_again() {
    let (mut mem, mut driver) = (mem(64), Driver::new(&QUEUE_SIZES));
    ask(&mut mem, &mut driver, (PLUG, block(0), 3));
    for number in 0..3 {
        driver
            .ram
            .write_obj(7_u8, GuestAddress(block(number)))
            .unwrap();
    }
    ask(&mut mem, &mut driver, (UNPLUG, block(1), 1));
    ask(&mut mem, &mut driver, (PLUG, block(1), 1));
    let at = |number| {
        driver
            .ram
            .read_obj::<u8>(GuestAddress(block(number)))
            .unwrap()
    };
    assert_eq!([at(0), at(1), at(2)], [7, 0, 7]);
}

#[test]
fn all_of_it_is_unplugged_at_once() {
    let (mut mem, mut driver) = (mem(256), Driver::new(&QUEUE_SIZES));
    ask(&mut mem, &mut driver, (PLUG, block(0), 100));
    driver.ram.write_obj(7_u8, GuestAddress(block(99))).unwrap();
    assert_eq!(ask(&mut mem, &mut driver, (UNPLUG_ALL, 0, 0)), (ACK, 0));
    assert_eq!(mem.plugged(), 0);
    assert_eq!(
        driver.ram.read_obj::<u8>(GuestAddress(block(99))).unwrap(),
        0
    );
    assert_eq!(ask(&mut mem, &mut driver, (STATE, block(0), 128)), (ACK, 1));
}

#[test]
fn a_long_range_is_given_back_in_turns_and_answered_once() {
    let (mut mem, mut driver) = (mem(256), Driver::new(&QUEUE_SIZES));
    ask(&mut mem, &mut driver, (PLUG, block(0), 128));
    let _ = driver.kicked(REQUESTS);
    add(&mut driver, &bytes(UNPLUG, block(0), 128));
    mem.serve(REQUESTS, &mut driver.queues()).unwrap();
    assert!(driver.used(REQUESTS).is_none());
    assert_eq!(mem.plugged(), (128 - TURN_BLOCKS as u64) * BLOCK);
    assert!(driver.kicked(REQUESTS), "the rest is announced");

    mem.serve(REQUESTS, &mut driver.queues()).unwrap();
    assert_eq!(driver.used(REQUESTS).unwrap().written[0], ACK);
    assert!(driver.used(REQUESTS).is_none());
    assert_eq!(mem.plugged(), 0);
}

#[test]
fn a_reset_leaves_what_is_plugged_and_forgets_what_was_asked() {
    let (mut mem, mut driver) = (mem(256), Driver::new(&QUEUE_SIZES));
    ask(&mut mem, &mut driver, (PLUG, block(0), 128));
    add(&mut driver, &bytes(UNPLUG, block(0), 128));
    mem.serve(REQUESTS, &mut driver.queues()).unwrap();
    mem.reset();
    assert!(mem.unplugging.is_none());
    assert_eq!(mem.plugged(), (128 - TURN_BLOCKS as u64) * BLOCK);
}

#[test]
fn a_request_cut_short_or_without_room_for_its_answer_breaks_the_queue() {
    for buffers in [
        [
            Buffer::Readable(&[0; REQUEST_LEN - 1]),
            Buffer::Writable(10),
        ],
        [Buffer::Readable(&[0; REQUEST_LEN]), Buffer::Writable(9)],
    ] {
        let (mut mem, mut driver) = (mem(8), Driver::new(&QUEUE_SIZES));
        driver.add(REQUESTS, &buffers);
        let served = mem.serve(REQUESTS, &mut driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))));
    }
}

#[test]
fn memory_slots_follow_what_is_asked_for_and_never_go() {
    let mut mem = mem(1);
    // Less than a block is none; there is nothing to map for it.
    assert_eq!((mem.requested(), mem.backing.mapped.len()), (0, 0));
    for (mib, requested, usable) in [
        (2, 2, 128),
        (128, 128, 128),
        (131, 130, 256),
        (0, 0, 256),
        (u32::MAX, 256, 256),
    ] {
        mem.request(mib).unwrap();
        assert_eq!((mem.requested, mem.usable), (requested << 20, usable << 20));
    }
    let half = REGION / 2;
    assert_eq!(mem.backing.mapped, [(START, half), (START + half, half)]);
}

#[test]
fn without_a_slot_nothing_changes() {
    let mut mem = mem(100);
    mem.backing.full = true;
    assert!(mem.request(200).is_err());
    assert_eq!((mem.requested, mem.usable), (100 << 20, 128 << 20));
    mem.request(50).unwrap();
    assert_eq!(mem.requested(), 50 << 20);
}

#[test]
fn the_driver_reads_what_there_is_and_what_should_be() {
    let mut mem = mem(130);
    mem.blocks.set(0..2, true);
    let field = |offset| {
        let mut bytes = [0; 8];
        mem.read_config(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let fields = [16, 24, 32, 40, 48].map(field);
    assert_eq!(fields, [START, REGION, 256 << 20, 4 << 20, 130 << 20]);
}

proptest! {
    /// virtio 1.3 §5.15.6: a model of a list of blocks says the same, and no more is ever plugged by a
    /// request than was asked for at the time.
    #[test]
    fn any_requests_in_any_order_leave_a_device_that_adds_up(
        steps in vec((0..6_u16, 0..140_u16, 0..140_u16, 0..300_u32), 1..40),
    ) {
        let (mut mem, mut driver) = (mem(0), Driver::new(&QUEUE_SIZES));
        let mut list = [false; 128];
        for (kind, first, count, mib) in steps {
            if kind == 5 {
                mem.request(mib).unwrap();
                continue;
            }
            let before = mem.plugged();
            let usable = usize::try_from(mem.usable / BLOCK).unwrap();
            let range = usize::from(first)..usize::from(first) + usize::from(count);
            let inside = count > 0 && range.end <= usable;
            let plugged = if inside { list[range.clone()].iter().filter(|&&b| b).count() } else { 0 };
            let (answer, _) = ask(&mut mem, &mut driver, (kind, block(first.into()), count));
            let expected = match kind {
                PLUG if !inside || plugged > 0 => ERROR,
                PLUG if before + u64::from(count) * BLOCK > mem.requested => NACK,
                UNPLUG if !inside || plugged < range.len() => ERROR,
                STATE if !inside => ERROR,
                PLUG | UNPLUG | UNPLUG_ALL | STATE => ACK,
                _ => ERROR,
            };
            prop_assert_eq!(answer, expected);
            match (kind, answer) {
                (PLUG, ACK) => list[range].fill(true),
                (UNPLUG, ACK) => list[range].fill(false),
                (UNPLUG_ALL, ACK) => list.fill(false),
                _ => {}
            }
            let all = list.iter().filter(|&&block| block).count() as u64;
            prop_assert_eq!(mem.plugged(), all * BLOCK);
            prop_assert!(mem.plugged() <= before.max(mem.requested));
        }
    }
}
