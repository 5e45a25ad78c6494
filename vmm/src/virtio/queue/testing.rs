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

/// Where the rings of the first queue are; each queue has one such area.
const RINGS: u64 = 0x1_0000;
/// Descriptor table, available ring and used ring of one queue of up to 1024 descriptors.
const RINGS_LEN: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Each descriptor has a buffer of its own.
const BUFFERS: u64 = 0x100_0000;
const BUFFER_LEN: u64 = 0x4_0000;
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
    base: u64,
    buffers: u64,
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
        let mut buffers = BUFFERS;
        let mut base = RINGS;
        let mut lanes = Vec::new();
        let mut rings = Vec::new();
        for &size in sizes {
            let mut ring = Queue::new(size).unwrap();
            ring.try_set_desc_table_address(GuestAddress(base)).unwrap();
            ring.try_set_avail_ring_address(GuestAddress(base + AVAIL))
                .unwrap();
            ring.try_set_used_ring_address(GuestAddress(base + USED))
                .unwrap();
            ring.set_event_idx(true);
            ring.set_ready(true);
            rings.push(ring);
            lanes.push(Lane {
                base,
                buffers,
                size,
                free: (0..size).rev().collect(),
                chains: vec![Vec::new(); usize::from(size)],
                avail_idx: 0,
                used_idx: 0,
            });
            base += RINGS_LEN;
            buffers += u64::from(size) * BUFFER_LEN;
        }
        Self {
            ram,
            kicks: (sizes.iter())
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            rings,
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
        let base = self.lanes[queue].base;
        [base, base + AVAIL, base + USED]
    }

    /// Starts over with empty rings, as a driver does after it reset the device.
    pub fn restart(&mut self) {
        for lane in &mut self.lanes {
            // Up to the buffers, of which nothing needs to be forgotten.
            for ring in [AVAIL, USED] {
                self.ram
                    .write_slice(&[0; 0x100], GuestAddress(lane.base + ring))
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
        for ring in [AVAIL, USED] {
            let field = GuestAddress(lane.base + ring + 2);
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
            let own = lane.buffers + u64::from(descs[i]) * BUFFER_LEN;
            let (addr, len, mut flags) = match *buffer {
                Buffer::Readable(bytes) => {
                    assert!(bytes.len() as u64 <= BUFFER_LEN);
                    self.ram.write_slice(bytes, GuestAddress(own)).unwrap();
                    (own, u32::try_from(bytes.len()).unwrap(), 0)
                }
                Buffer::Writable(len) => {
                    assert!(u64::from(len) <= BUFFER_LEN);
                    (own, len, DESC_WRITE)
                }
                Buffer::Raw(addr, len, flags) => (addr, len, flags),
            };
            let next = descs.get(i + 1).copied();
            if next.is_some() {
                flags |= DESC_NEXT;
            }
            let desc = GuestAddress(lane.base + u64::from(descs[i]) * 16);
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
        let ring = lane.base + AVAIL;
        let slot = u64::from(lane.avail_idx % lane.size);
        self.ram
            .write_obj(head, GuestAddress(ring + 4 + 2 * slot))
            .unwrap();
        lane.avail_idx = lane.avail_idx.wrapping_add(1);
        self.ram
            .write_obj(lane.avail_idx, GuestAddress(ring + 2))
            .unwrap();
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
        let ring = lane.base + USED;
        let idx: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        if idx == lane.used_idx {
            return None;
        }
        let slot = ring + 4 + 8 * u64::from(lane.used_idx % lane.size);
        let head: u32 = self.ram.read_obj(GuestAddress(slot)).unwrap();
        let mut left: u32 = self.ram.read_obj(GuestAddress(slot + 4)).unwrap();
        lane.used_idx = lane.used_idx.wrapping_add(1);
        // The next buffer used shall raise the interrupt.
        let used_event = lane.base + AVAIL + 4 + 2 * u64::from(lane.size);
        self.ram
            .write_obj(lane.used_idx, GuestAddress(used_event))
            .unwrap();

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

    /// Whether the device asked to be told of the chain added last (`avail_event`).
    pub fn device_listens(&self, queue: usize) -> bool {
        let lane = &self.lanes[queue];
        let avail_event = lane.base + USED + 4 + 8 * u64::from(lane.size);
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
