//! A card of two pairs of queues, of which the second has a thread where a test starts it.

use std::time::Duration;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::*;

const MQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
/// `receiveq2`, `transmitq2` and, behind them, `controlq`.
const RX2: usize = 2;
const TX2: usize = 3;
const CONTROL: usize = 4;

const OK: u8 = 0;
const ERR: u8 = 1;

struct Several {
    driver: Driver,
    net: Net<FakeTap>,
    wires: [UnixDatagram; 2],
    hosts: [Arc<Mutex<Host>>; 2],
}

/// A tap of two queues.
type Queues2 = (Vec<FakeTap>, [UnixDatagram; 2], [Arc<Mutex<Host>>; 2]);

fn two_queues() -> Queues2 {
    let (first, its_wire, its_host) = fake_tap();
    let (second, wire, host) = fake_tap();
    (vec![first, second], [its_wire, wire], [its_host, host])
}

/// The command that asks for so many pairs.
fn pairs(number: u16) -> [u8; 4] {
    let [low, high] = number.to_le_bytes();
    [4, 0, low, high]
}

impl Several {
    fn new(features: u64) -> Self {
        let mut driver = Driver::new(&[64, 64, 64, 64, 64]);
        let mut net = Net::new(MAC, None, 2, Limits::default()).unwrap();
        let queues = driver.queues();
        net.wire(queues.kicks(), queues.interrupt()).unwrap();
        let (taps, wires, hosts) = two_queues();
        net.plug(taps).unwrap();
        net.activate(features, &mut driver.queues()).unwrap();
        Self {
            driver,
            net,
            wires,
            hosts,
        }
    }

    fn serve(&mut self, queue: usize) {
        self.net.serve(queue, &mut self.driver.queues()).unwrap();
    }

    /// What the event loop does when it hears something.
    fn hear(&mut self) -> Result<(), DeviceError> {
        self.net.serve_backend(&mut self.driver.queues())
    }

    /// Waits until the event loop has something to hear.
    fn wait(&self) {
        let backend = self.net.backend().unwrap();
        let patience = Timespec::try_from(Duration::from_secs(10)).unwrap();
        let ready = poll(&mut [PollFd::new(&backend, PollFlags::IN)], Some(&patience));
        assert_eq!(ready, Ok(1));
    }

    /// Has a command carried out; returns the answer.
    fn command(&mut self, command: &[u8]) -> Option<u8> {
        let chain = [Buffer::Readable(command), Buffer::Writable(1)];
        self.driver.add(CONTROL, &chain);
        self.serve(CONTROL);
        Some(self.driver.used(CONTROL)?.written[0])
    }

    fn use_pairs(&mut self, number: u16) {
        assert_eq!(self.command(&pairs(number)), Some(OK));
    }

    fn send(&mut self, queue: usize, data: &[u8]) {
        let chain = [Buffer::Readable(&PLAIN), Buffer::Readable(data)];
        self.driver.add(queue, &chain);
    }

    fn sent(&self, wire: usize) -> Option<Vec<u8>> {
        let mut frame = vec![0; MAX_FRAME];
        let len = self.wires[wire].recv(&mut frame).ok()?;
        Some(frame[VNET_HEADER_LEN..len].to_vec())
    }

    fn arrive(&self, wire: usize, data: &[u8]) {
        self.wires[wire].send(&[&PLAIN, data].concat()).unwrap();
    }

    fn received(&mut self, queue: usize) -> Option<Vec<u8>> {
        let frame = self.driver.used(queue)?.written;
        Some(frame[VNET_HEADER_LEN..].to_vec())
    }

    fn is_attached(&self, queue: usize) -> bool {
        !self.hosts[queue].lock().unwrap().detached
    }
}

#[test]
fn each_pair_that_the_driver_asks_for_moves_the_frames_of_its_queue_of_the_tap() {
    let mut card = Several::new(MQ);
    assert!(card.is_attached(0) && !card.is_attached(1));
    card.use_pairs(2);
    assert!(card.is_attached(1));

    for (wire, (receive, transmit)) in [(RX, TX), (RX2, TX2)].into_iter().enumerate() {
        card.driver.add(receive, &[Buffer::Writable(1526)]);
        card.arrive(wire, b"in");
        card.serve(receive);
        assert_eq!(card.received(receive).unwrap(), b"in");
        card.send(transmit, b"out");
        card.serve(transmit);
        assert_eq!(card.sent(wire).unwrap(), b"out");
        assert!(card.driver.used(transmit).is_some() && card.driver.interrupted());
    }
}

/// virtio 1.3 §5.1.6.5.6.1: a driver asks for 1 to `max_virtqueue_pairs`, which is the card's, not the
/// specification's largest. Cloud Hypervisor had taken the latter (2026).
#[test]
fn numbers_of_pairs_that_the_card_does_not_have_are_refused_and_change_nothing() {
    let mut card = Several::new(MQ);
    for used in [1, 2] {
        card.use_pairs(used);
        for number in [0, 3, 4, 0x8000, 0xffff] {
            assert_eq!(card.command(&pairs(number)), Some(ERR), "{number}");
        }
        assert_eq!(card.is_attached(1), used == 2);
    }
}

#[test]
fn what_is_no_command_is_answered_with_an_error_and_without_room_for_that_the_queue_is_broken() {
    let mut card = Several::new(MQ);
    for command in [&[][..], &[4], &[4, 0, 2], &[4, 0, 2, 0, 0], &[0, 0, 2, 0]] {
        assert_eq!(card.command(command), Some(ERR), "{command:?}");
    }
    // However it is spread.
    let spread = [&[4_u8][..], &[0], &[2], &[0]].map(Buffer::Readable);
    card.driver.add(CONTROL, &spread);
    let served = card.net.serve(CONTROL, &mut card.driver.queues());
    assert!(matches!(served, Err(DeviceError::Queue(_))), "no room");

    for chain in [
        &[Buffer::Writable(0)][..],
        &[Buffer::Raw(1 << 40, 4, 0), Buffer::Writable(1)],
        &[Buffer::Readable(&[4, 0, 2, 0]), Buffer::Raw(1 << 40, 1, 2)],
    ] {
        let mut card = Several::new(MQ);
        card.driver.add(CONTROL, chain);
        let served = card.net.serve(CONTROL, &mut card.driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))), "{chain:?}");
        assert!(!card.is_attached(1));
    }
}

/// virtio 1.3 §5.1.2: without `VIRTIO_NET_F_MQ` there is one pair, and the control queue is behind it.
#[test]
fn a_driver_of_one_pair_has_its_control_queue_behind_that_and_no_command_in_it() {
    let mut card = Several::new(1 << VIRTIO_NET_F_CTRL_VQ);
    card.net.start_threads(Filters::unjailed()).unwrap();
    let chain = [Buffer::Readable(&pairs(2)), Buffer::Writable(1)];
    card.driver.add(RX2, &chain);
    // The notification comes to the second pair's thread, which calls the event loop.
    card.driver.kick(RX2);
    card.wait();
    card.hear().unwrap();
    assert_eq!(card.driver.used(RX2).unwrap().written, [ERR]);
    assert!(!readable(&card.net) && !card.is_attached(1));
}

#[test]
fn without_a_control_queue_the_further_queues_are_nobodys() {
    for features in [0, 1 << VIRTIO_NET_F_MQ] {
        let mut card = Several::new(features);
        card.send(TX2, b"x");
        card.driver.add(RX2, &[Buffer::Writable(1526)]);
        card.driver.add(CONTROL, &[Buffer::Writable(1)]);
        for queue in [RX2, TX2, CONTROL, CONTROL + 1, usize::MAX] {
            card.serve(queue);
        }
        card.hear().unwrap();
        for queue in [RX2, TX2, CONTROL] {
            assert!(card.driver.used(queue).is_none(), "{queue}");
        }
    }
}

/// virtio 1.3 §5.1.6.5.6.2: once the command is used, no packet comes on a receive queue beyond the number.
#[test]
fn a_pair_that_is_given_up_sends_what_was_there_before_and_moves_nothing_after() {
    let mut card = Several::new(MQ);
    card.use_pairs(2);
    // Held, for want of a buffer; and in the tap.
    card.arrive(1, b"held");
    card.serve(RX2);
    card.arrive(1, b"waits");
    card.send(TX2, b"before");
    card.use_pairs(1);
    assert_eq!(card.sent(1).unwrap(), b"before");
    assert!(!card.is_attached(1));

    card.driver.add(RX2, &[Buffer::Writable(1526)]);
    card.serve(RX2);
    assert!(card.received(RX2).is_none());
    card.send(TX2, b"after");
    card.serve(TX2);
    assert!(card.sent(1).is_none());
    // Lost, and not stuck.
    assert!(card.driver.used(TX2).is_some() && card.driver.used(TX2).is_some());

    card.use_pairs(2);
    card.arrive(1, b"again");
    let mut frames = Vec::new();
    card.driver.add(RX2, &[Buffer::Writable(1526)]);
    card.driver.add(RX2, &[Buffer::Writable(1526)]);
    card.serve(RX2);
    frames.extend(std::iter::from_fn(|| card.received(RX2)));
    // The kernel drops what waited; a socket does not.
    assert_eq!(frames, [&b"waits"[..], b"again"]);
}

#[test]
fn a_chain_that_waited_for_a_full_queue_of_the_tap_is_not_stuck_when_the_pair_is_given_up() {
    let mut card = Several::new(MQ);
    card.use_pairs(2);
    // Fill it.
    let mut posted = 0;
    while card.driver.free(TX2) >= 2 {
        card.send(TX2, &[0; 1400]);
        posted += 1;
    }
    for _ in 0..100 {
        card.serve(TX2);
        while card.driver.used(TX2).is_some() {
            posted -= 1;
        }
        if posted > 0 {
            break;
        }
        while card.driver.free(TX2) >= 2 {
            card.send(TX2, &[0; 1400]);
            posted += 1;
        }
    }
    assert!(posted > 0, "the tap takes everything");
    card.use_pairs(1);
    while card.driver.used(TX2).is_some() {
        posted -= 1;
    }
    assert_eq!(posted, 0);
}

#[test]
fn a_reset_takes_the_further_pairs_back_and_detaches_their_queues() {
    let mut card = Several::new(MQ);
    card.use_pairs(2);
    card.driver.add(RX2, &[Buffer::Writable(1526)]);
    card.net.reset();
    assert!(!card.is_attached(1));
    card.arrive(1, b"late");
    card.serve(RX2);
    assert!(card.received(RX2).is_none());

    // The driver starts over, with one pair.
    card.net.activate(MQ, &mut card.driver.queues()).unwrap();
    assert!(!card.is_attached(1));
    card.use_pairs(2);
    assert!(card.is_attached(1));
}

/// Told once, by the event loop; until the reset, nobody touches the rings.
#[test]
fn a_broken_chain_of_a_further_pair_breaks_the_card() {
    let mut card = Several::new(MQ);
    card.use_pairs(2);
    card.driver.add(TX2, &[Buffer::Readable(&PLAIN[..11])]);
    card.serve(TX2);
    assert!(readable(&card.net));
    let heard = card.hear().unwrap_err();
    assert!(heard.to_string().contains("pair 2: queue 1"), "{heard}");
    card.net.halt();
    assert!(!readable(&card.net) && !card.is_attached(1));
    card.send(TX2, b"x");
    card.serve(TX2);
    assert!(card.sent(1).is_none());
}

#[test]
fn a_tap_that_comes_later_has_the_queues_attached_that_the_driver_uses() {
    for (used, attached) in [(1, false), (2, true)] {
        let mut card = Several::new(MQ);
        card.use_pairs(used);
        let (taps, wires, hosts) = two_queues();
        card.net.plug(taps).unwrap();
        (card.wires, card.hosts) = (wires, hosts);
        assert_eq!(card.is_attached(1), attached);
        card.send(TX2, b"out");
        card.serve(TX2);
        assert_eq!(card.sent(1).is_some(), attached);
    }
}

#[test]
fn a_tap_with_more_or_fewer_queues_than_the_card_is_refused_and_the_one_before_stays() {
    let mut card = Several::new(MQ);
    let (mut taps, ..) = two_queues();
    let (third, ..) = fake_tap();
    taps.push(third);
    for taps in [vec![], vec![fake_tap().0], taps] {
        let queues = taps.len();
        let refused = card.net.plug(taps).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("a network card with 2 pairs of queues takes a tap with as many, not {queues}")
        );
    }
    card.send(TX, b"out");
    card.serve(TX);
    assert_eq!(card.sent(0).unwrap(), b"out");
}

#[test]
fn a_tap_that_is_gone_is_no_reason_to_break_the_card() {
    let mut card = Several::new(MQ);
    card.hosts[1].lock().unwrap().deleted = true;
    assert_eq!(card.command(&pairs(2)), Some(ERR));
    assert_eq!(card.command(&pairs(1)), Some(OK));
}

#[test]
fn a_driver_that_comes_when_the_tap_is_gone_has_its_pairs_and_the_next_tap() {
    let mut card = Several::new(MQ);
    card.net.reset();
    for host in &card.hosts {
        host.lock().unwrap().deleted = true;
    }
    card.net.activate(MQ, &mut card.driver.queues()).unwrap();
    card.use_pairs(2);
    let (taps, wires, hosts) = two_queues();
    card.net.plug(taps).unwrap();
    (card.wires, card.hosts) = (wires, hosts);
    card.send(TX2, b"out");
    card.serve(TX2);
    assert_eq!(card.sent(1).unwrap(), b"out");
}

#[test]
fn a_card_without_a_tap_agrees_to_any_number_of_pairs() {
    let mut card = Several::new(MQ);
    card.net = Net::new(MAC, None, 2, Limits::default()).unwrap();
    let queues = card.driver.queues();
    card.net.wire(queues.kicks(), queues.interrupt()).unwrap();
    card.net.activate(MQ, &mut card.driver.queues()).unwrap();
    card.use_pairs(2);
    card.send(TX2, b"lost");
    card.serve(TX2);
    assert!(card.driver.used(TX2).is_some());
}

/// Each takes the host's lock of its interfaces.
#[test]
fn a_flood_of_commands_is_answered_in_time_and_not_at_once() {
    let mut card = Several::new(MQ);
    for i in 0..20 {
        let command = pairs(1 + i % 2);
        let chain = [Buffer::Readable(&command), Buffer::Writable(1)];
        card.driver.add(CONTROL, &chain);
    }
    let answered = |card: &mut Several| std::iter::from_fn(|| card.driver.used(CONTROL)).count();
    card.serve(CONTROL);
    let at_once = answered(&mut card);
    assert!((16..20).contains(&at_once), "{at_once}");
    let mut later = 0;
    while at_once + later < 20 {
        card.wait();
        card.hear().unwrap();
        later += answered(&mut card);
    }
}

#[test]
fn a_thread_moves_the_frames_of_a_further_pair_and_ends_with_the_card() {
    let mut card = Several::new(MQ);
    card.net.start_threads(Filters::unjailed()).unwrap();
    card.use_pairs(2);
    for i in 0..50 {
        card.wires[1].set_nonblocking(false).unwrap();
        card.wires[1]
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        card.send(TX2, &[i; 60]);
        card.driver.kick(TX2);
        assert_eq!(card.sent(1).unwrap(), [i; 60]);

        card.driver.add(RX2, &[Buffer::Writable(1526)]);
        card.driver.kick(RX2);
        card.arrive(1, &[i; 61]);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let frame = loop {
            match card.received(RX2) {
                Some(frame) => break frame,
                None => assert!(std::time::Instant::now() < deadline),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(frame, [i; 61]);
        while card.driver.used(TX2).is_some() {}
    }
    let Several { net, wires, .. } = card;
    drop(net);
    // Its end of the second queue goes with the thread.
    wires[1].set_nonblocking(false).unwrap();
    let gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        wires[1].send(&PLAIN).is_err()
    });
    assert!(gone);
}
