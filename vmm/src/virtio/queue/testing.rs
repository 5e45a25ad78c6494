//! A driver for tests and fuzz targets: memory, rings and buffers as a guest would lay them out.
//! Not in the program: it panics where a test should fail.
#![expect(
    clippy::unwrap_used,
    reason = "what a test's own memory refuses is a failure of the test"
)]

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::{self, Ram};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::Queues;

/// Where the rings of the first queue are. Those of the others follow, and the descriptors' near buffers,
/// so that what most tests touch is little and in one piece.
const RINGS: u64 = 0x1_0000;
/// What each part of a queue begins at a multiple of.
const PART: u64 = 0x1000;
/// Each descriptor has a buffer of its own near by, for what is small, and one far away. The near ones
/// are in the order in which descriptors are used first.
const NEAR_LEN: u64 = 0x1100;
const FAR: u64 = 0x100_0000;
const FAR_LEN: u64 = 0x4_0000;
/// Untouched pages of it cost nothing.
const RAM_LEN: usize = 1 << 29;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// One descriptor of a chain to add.
#[derive(Debug, Clone, Copy)]
pub enum Buffer<'a> {
    /// For the device to read.
    Readable(&'a [u8]),
    /// For the device to write, that many bytes.
    Writable(u32),
    /// Whatever address, length and flags a hostile driver may choose.
    Raw(u64, u32, u16),
}

/// A chain the device gave back.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// What the device says it wrote.
    pub written: Vec<u8>,
}

/// A driver and the memory it shares with one device.
pub struct Driver {
    /// All of the guest's memory.
    pub ram: Ram,
    rings: Vec<Queue>,
    kicks: Vec<EventFd>,
    interrupt: Interrupt,
    line: EventFd,
    lanes: Vec<Lane>,
}

/// The driver's view of one queue.
struct Lane {
    /// Descriptors, available ring and used ring.
    rings: [u64; 3],
    /// The first descriptor's buffers, and how far apart the near ones are.
    near: u64,
    near_step: u64,
    far: u64,
    size: u16,
    free: Vec<u16>,
    chains: Vec<Vec<(u16, Option<u64>, u32)>>,
    avail_idx: u16,
    used_idx: u16,
}

impl Driver {
    /// Sets up queues of the given sizes, with `VIRTIO_F_EVENT_IDX` as Linux has it.
    pub fn new(sizes: &[u16]) -> Self {
        let ram = memory::allocate(&[(GuestAddress(0), RAM_LEN)]).unwrap();
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut next = RINGS;
        let mut part = |bytes: u64| {
            let start = next;
            next += bytes.next_multiple_of(PART);
            start
        };
        // virtio 1.3 §2.7: bytes of a descriptor, of an entry of either ring, and of the rest of them.
        let areas: Vec<[u64; 3]> = (sizes.iter().copied().map(u64::from))
            .map(|size| [part(16 * size), part(2 * size + 6), part(8 * size + 6)])
            .collect();
        let (mut near, mut far) = (next, FAR);
        let most = sizes.iter().max().map_or(0, |&size| u64::from(size));
        assert!(near + most * NEAR_LEN * sizes.len() as u64 <= FAR);
        let mut lanes = Vec::new();
        let mut queues = Vec::new();
        for (&size, rings) in sizes.iter().zip(areas) {
            let [table, available, used] = rings.map(GuestAddress);
            let mut ring = Queue::new(size).unwrap();
            ring.try_set_desc_table_address(table).unwrap();
            ring.try_set_avail_ring_address(available).unwrap();
            ring.try_set_used_ring_address(used).unwrap();
            ring.set_event_idx(true);
            ring.set_ready(true);
            queues.push(ring);
            lanes.push(Lane {
                rings,
                near,
                near_step: NEAR_LEN * sizes.len() as u64,
                far,
                size,
                free: (0..size).rev().collect(),
                chains: vec![Vec::new(); usize::from(size)],
                avail_idx: 0,
                used_idx: 0,
            });
            near += NEAR_LEN;
            far += u64::from(size) * FAR_LEN;
        }
        Self {
            ram,
            kicks: (sizes.iter())
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            rings: queues,
            lanes,
        }
    }

    /// The queues as the device sees them.
    pub fn queues(&mut self) -> Queues<'_> {
        Queues::new(&self.ram, &mut self.rings, &self.kicks, &self.interrupt)
    }

    /// Where queue `queue` is: descriptors, available ring and used ring.
    #[must_use]
    pub fn rings(&self, queue: usize) -> [u64; 3] {
        self.lanes[queue].rings
    }

    /// Starts over with empty rings, as a driver does after it reset the device.
    pub fn restart(&mut self) {
        for lane in &mut self.lanes {
            // Up to the buffers, of which nothing needs to be forgotten.
            for ring in &lane.rings[1..] {
                self.ram
                    .write_slice(&[0; 0x100], GuestAddress(*ring))
                    .unwrap();
            }
            lane.free = (0..lane.size).rev().collect();
            lane.chains.fill(Vec::new());
            lane.avail_idx = 0;
            lane.used_idx = 0;
        }
    }

    /// Goes on with indices that stand at `index`, as after that many chains.
    pub fn start_at(&mut self, queue: usize, index: u16) {
        let lane = &mut self.lanes[queue];
        lane.avail_idx = index;
        lane.used_idx = index;
        for ring in &lane.rings[1..] {
            let field = GuestAddress(ring + 2);
            self.ram.write_obj(index, field).unwrap();
        }
        self.rings[queue].set_next_avail(index);
        self.rings[queue].set_next_used(index);
    }

    /// Makes a chain available; panics when the descriptors are used up.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> u16 {
        let lane = &mut self.lanes[queue];
        let descs: Vec<u16> = buffers.iter().map(|_| lane.free.pop().unwrap()).collect();
        let mut chain = Vec::new();
        for (i, buffer) in buffers.iter().enumerate() {
            let own = |len: u64| {
                assert!(len <= FAR_LEN);
                let desc = u64::from(descs[i]);
                if len <= NEAR_LEN {
                    lane.near + desc * lane.near_step
                } else {
                    lane.far + desc * FAR_LEN
                }
            };
            let (addr, len, mut flags) = match *buffer {
                Buffer::Readable(bytes) => {
                    let own = own(bytes.len() as u64);
                    self.ram.write_slice(bytes, GuestAddress(own)).unwrap();
                    (own, u32::try_from(bytes.len()).unwrap(), 0)
                }
                Buffer::Writable(len) => (own(len.into()), len, DESC_WRITE),
                Buffer::Raw(addr, len, flags) => (addr, len, flags),
            };
            let next = descs.get(i + 1).copied();
            if next.is_some() {
                flags |= DESC_NEXT;
            }
            let desc = GuestAddress(lane.rings[0] + u64::from(descs[i]) * 16);
            self.ram.write_obj(addr, desc).unwrap();
            self.ram.write_obj(len, GuestAddress(desc.0 + 8)).unwrap();
            self.ram
                .write_obj(flags, GuestAddress(desc.0 + 12))
                .unwrap();
            self.ram
                .write_obj(next.unwrap_or(0), GuestAddress(desc.0 + 14))
                .unwrap();
            let writable = matches!(buffer, Buffer::Writable(_)).then_some(addr);
            chain.push((descs[i], writable, len));
        }
        lane.chains[usize::from(descs[0])] = chain;
        self.offer(queue, descs[0]);
        descs[0]
    }

    /// Makes a head available, whatever it is.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let lane = &mut self.lanes[queue];
        let [_, ring, _] = lane.rings;
        let slot = u64::from(lane.avail_idx % lane.size);
        self.ram
            .write_obj(head, GuestAddress(ring + 4 + 2 * slot))
            .unwrap();
        lane.avail_idx = lane.avail_idx.wrapping_add(1);
        self.ram
            .write_obj(lane.avail_idx, GuestAddress(ring + 2))
            .unwrap();
    }

    /// The memory that rings and buffers lie in as long as there are few and small chains: from where, and
    /// how much for `descriptors` of each queue.
    #[must_use]
    pub fn close(&self, descriptors: u16) -> (GuestAddress, u64) {
        let lane = &self.lanes[0];
        let end = lane.near + u64::from(descriptors) * lane.near_step;
        (GuestAddress(RINGS), end - RINGS)
    }

    /// Takes a queue away, as if the driver had never set it up.
    pub fn retire(&mut self, queue: usize) {
        self.rings[queue].set_ready(false);
    }

    /// Descriptors not in use.
    pub fn free(&self, queue: usize) -> usize {
        self.lanes[queue].free.len()
    }

    /// The next chain the device gave back.
    pub fn used(&mut self, queue: usize) -> Option<Used> {
        let lane = &mut self.lanes[queue];
        let [_, _, ring] = lane.rings;
        let idx: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        if idx == lane.used_idx {
            return None;
        }
        let slot = ring + 4 + 8 * u64::from(lane.used_idx % lane.size);
        let head: u32 = self.ram.read_obj(GuestAddress(slot)).unwrap();
        let mut left: u32 = self.ram.read_obj(GuestAddress(slot + 4)).unwrap();
        lane.used_idx = lane.used_idx.wrapping_add(1);
        let next = lane.used_idx;
        // The next buffer used shall raise the interrupt.
        self.wait_for(queue, next);

        let lane = &mut self.lanes[queue];
        let head = u16::try_from(head).unwrap();
        let mut written = Vec::new();
        for (desc, writable, len) in std::mem::take(&mut lane.chains[usize::from(head)]) {
            lane.free.push(desc);
            if let Some(addr) = writable {
                let mut bytes = vec![0; len.min(left) as usize];
                self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
                written.extend(bytes);
                left -= len.min(left);
            }
        }
        assert_eq!(left, 0, "the device wrote more than the chain holds");
        Some(Used { head, written })
    }

    /// Asks to be interrupted once the used ring's entry `index` is there (`used_event`).
    pub fn wait_for(&self, queue: usize, index: u16) {
        let lane = &self.lanes[queue];
        let [_, available, _] = lane.rings;
        let used_event = available + 4 + 2 * u64::from(lane.size);
        self.ram.write_obj(index, GuestAddress(used_event)).unwrap();
    }

    /// Whether the device asked to be told of the chain added last (`avail_event`).
    pub fn device_listens(&self, queue: usize) -> bool {
        let lane = &self.lanes[queue];
        let [_, _, used] = lane.rings;
        let avail_event = used + 4 + 8 * u64::from(lane.size);
        let event: u16 = self.ram.read_obj(GuestAddress(avail_event)).unwrap();
        event == lane.avail_idx.wrapping_sub(1)
    }

    /// Notifies the device, as a write to `QueueNotify` would.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Whether the device called for itself to be served again; forgets it.
    pub fn kicked(&self, queue: usize) -> bool {
        self.kicks[queue].read().is_ok()
    }

    /// Whether the interrupt was raised; forgets it.
    pub fn interrupted(&self) -> bool {
        self.line.read().is_ok()
    }
}
