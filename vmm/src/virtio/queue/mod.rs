//! The queues of one device as the device sees them (virtio 1.3 §2.7, split virtqueues).

#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod used;

use std::ops::Range;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::RegisterPage;
use crate::memory::Ram;
use crate::rate_limit::RateLimiter;
use crate::virtio::interrupt::Interrupt;

/// Most descriptors of a chain, as QEMU has it. The specification's bound is the queue's size
/// (virtio 1.3 §2.7.5.3.1), which Linux exceeds with indirect tables; without any bound one chain
/// has 65535, and a queue full of them keeps the event loop busy for seconds. §2.7.4.1 allows a device
/// a reasonable one.
const MAX_CHAIN: usize = 1024;

/// A driver's violation of the queue's rules.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are outside of memory, or their indices jump.
    #[error("queue {index}")]
    Ring {
        /// Which queue.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// A chain is not laid out as the device's section of the specification says.
    #[error("queue {index}: {what}")]
    Chain {
        /// Which queue.
        index: usize,
        /// The rule that was broken.
        what: &'static str,
    },
}

/// A chain of descriptors the driver made available. Its head is used up by [`Queues::push`].
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a Ram>;

/// Reads the device-readable part of a chain.
pub type Reader<'a> = virtio_queue::Reader<'a, ()>;

/// Writes the device-writable part of a chain.
pub type Writer<'a> = virtio_queue::Writer<'a, ()>;

/// All queues of one active device, with what is needed to work on them.
pub struct Queues<'a> {
    ram: &'a Ram,
    rings: &'a mut [Queue],
    kicks: &'a [EventFd],
    interrupt: &'a Interrupt,
    /// Where the driver reads the configuration space, if it does not ask the transport.
    page: Option<&'a mut RegisterPage>,
    /// Whether the driver waits for one of the chains that were pushed together.
    due: bool,
}

impl<'a> Queues<'a> {
    /// Lends a device its queues for one call. `kicks` holds the notification of each.
    pub fn new(
        ram: &'a Ram,
        rings: &'a mut [Queue],
        kicks: &'a [EventFd],
        interrupt: &'a Interrupt,
    ) -> Self {
        Self {
            ram,
            rings,
            kicks,
            interrupt,
            page: None,
            due: false,
        }
    }

    /// The same, for a driver that reads the configuration space in `page`, if there is one.
    #[must_use]
    pub fn with_page(self, page: Option<&'a mut RegisterPage>) -> Self {
        Self { page, ..self }
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &'a Ram {
        self.ram
    }

    /// The rings themselves, for whoever serves them instead and is told their addresses.
    #[must_use]
    pub fn rings(&self) -> &[Queue] {
        self.rings
    }

    /// The rings of `range` once more, as they stand: for whoever serves them from now on, alone.
    ///
    /// # Panics
    /// When there are no such queues.
    #[must_use]
    pub fn rings_of(&self, range: Range<usize>) -> Vec<Queue> {
        let rings = self.rings.get(range).expect("a device knows its queues");
        let copy = |ring: &Queue| Queue::try_from(ring.state());
        (rings.iter().map(copy).collect::<Result<_, _>>())
            .expect("what a ring is, another one can be")
    }

    /// The driver's notifications, one for each queue.
    #[must_use]
    pub fn kicks(&self) -> &'a [EventFd] {
        self.kicks
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &'a Interrupt {
        self.interrupt
    }

    /// Has the driver read the configuration space as `read` fills it in: for a device that changes it by
    /// what a chain asks for, before that chain is given back. The transport does so later.
    pub fn show_config(&mut self, read: impl FnOnce(&mut [u8])) {
        if let Some(page) = &mut self.page {
            page.show_config(read);
        }
    }

    /// Takes the next available chain of queue `index`, or `None` when there is none.
    ///
    /// # Errors
    /// When the rings are broken: the driver is faulty or hostile.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain<'a>>, QueueError> {
        let ram = self.ram;
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.ready()) else {
            return Ok(None);
        };
        let mut chains = ring
            .iter(ram)
            .map_err(|source| QueueError::Ring { index, source })?;
        let chain = chains.next();
        if chain
            .as_ref()
            .is_some_and(|chain| chain.clone().nth(MAX_CHAIN).is_some())
        {
            let what = "chain longer than any queue";
            return Err(QueueError::Chain { index, what });
        }
        Ok(chain)
    }

    /// Puts the chain popped last back, to be popped again.
    pub fn unpop(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.go_to_previous_position();
        }
    }

    /// Gives a chain back to the driver with the number of bytes written into it.
    ///
    /// # Errors
    /// When the used ring is broken.
    pub fn push(&mut self, index: usize, head: u16, written: u32) -> Result<(), QueueError> {
        match self.rings.get_mut(index) {
            Some(ring) => ring
                .add_used(self.ram, head, written)
                .map_err(|source| QueueError::Ring { index, source }),
            None => Ok(()),
        }
    }

    /// Gives several chains back, each with the number of bytes written into it. The driver sees none of
    /// them before it sees all: `used.idx` is stored once.
    ///
    /// # Errors
    /// When either ring is broken.
    pub fn push_all(
        &mut self,
        index: usize,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        match self.rings.get_mut(index) {
            Some(ring) => {
                let waited_for = used::add_all(ring, self.ram, used)
                    .map_err(|source| QueueError::Ring { index, source })?;
                self.due |= waited_for;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Raises the interrupt if the driver wants to hear of the chains pushed since the last time.
    ///
    /// # Errors
    /// When the available ring, which says what the driver wants, is broken.
    pub fn notify(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.ready()) else {
            return Ok(());
        };
        let wanted = ring
            .needs_notification(self.ram)
            .map_err(|source| QueueError::Ring { index, source })?;
        // Whichever queue they were of: the device has one interrupt.
        if std::mem::take(&mut self.due) || wanted {
            self.interrupt.raise();
        }
        Ok(())
    }

    /// Serves every chain of queue `index` with `serve`, which returns the bytes it wrote, and
    /// notifies the driver once at the end.
    ///
    /// Bounded: at most one queue's size of chains a call. What a driver added beyond that is found
    /// by [`Queues::listen`], and served after everybody else had a turn.
    ///
    /// # Errors
    /// The first violation, from the rings or from `serve`; chains before it are given back.
    pub fn drain(
        &mut self,
        index: usize,
        serve: impl FnMut(Chain<'a>) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        self.drain_within(&mut RateLimiter::default(), index, serve)
    }

    /// The same, as long as `limit` allows, which the bytes written are paid to. When it does not,
    /// the queue rests, and the driver is not listened to.
    ///
    /// # Errors
    /// As [`Queues::drain`].
    pub fn drain_within(
        &mut self,
        limit: &mut RateLimiter,
        index: usize,
        mut serve: impl FnMut(Chain<'a>) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        let mut budget = self.rings.get(index).map_or(0, QueueT::size);
        while budget > 0
            && limit.ready()
            && let Some(chain) = self.pop(index)?
        {
            let head = chain.head_index();
            let written = serve(chain)?;
            self.push(index, head, written)?;
            limit.spend(written.into());
            budget -= 1;
        }
        if !limit.is_waiting() {
            self.listen(index)?;
        }
        self.notify(index)
    }

    /// Asks the driver to announce its next chain. If chains came in between, announces it itself,
    /// so that none is missed (virtio 1.3 §2.7.10.1).
    ///
    /// # Errors
    /// When the rings are broken.
    pub fn listen(&mut self, index: usize) -> Result<(), QueueError> {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.ready()) else {
            return Ok(());
        };
        let more = ring
            .enable_notification(self.ram)
            .map_err(|source| QueueError::Ring { index, source })?;
        if more && let Some(kick) = self.kicks.get(index) {
            let _ = kick.write(1);
        }
        Ok(())
    }
}

/// Opens the device-readable part of a chain.
///
/// # Errors
/// When a descriptor points outside of memory or the chain is malformed.
pub fn reader<'a>(index: usize, ram: &'a Ram, chain: &Chain<'a>) -> Result<Reader<'a>, QueueError> {
    chain
        .clone()
        .reader(ram)
        .map_err(|source| QueueError::Ring { index, source })
}

/// Opens the device-writable part of a chain.
///
/// # Errors
/// When a descriptor points outside of memory or the chain is malformed.
pub fn writer<'a>(index: usize, ram: &'a Ram, chain: &Chain<'a>) -> Result<Writer<'a>, QueueError> {
    chain
        .clone()
        .writer(ram)
        .map_err(|source| QueueError::Ring { index, source })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::testing::{Buffer, Driver};
    use super::*;

    /// Lays out an indirect table of `len` descriptors of one byte, and makes it available.
    fn add_indirect(driver: &mut Driver, len: u16) {
        const TABLE: u64 = 0x800_0000;
        for i in 0..len {
            let desc = vm_memory::GuestAddress(TABLE + u64::from(i) * 16);
            let last = i + 1 == len;
            driver.ram.write_obj(TABLE, desc).unwrap();
            let at = |offset| vm_memory::GuestAddress(desc.0 + offset);
            driver.ram.write_obj(1_u32, at(8)).unwrap();
            driver.ram.write_obj(u16::from(!last), at(12)).unwrap();
            driver.ram.write_obj(i.wrapping_add(1), at(14)).unwrap();
        }
        let indirect = 1 << 2;
        driver.add(0, &[Buffer::Raw(TABLE, u32::from(len) * 16, indirect)]);
    }

    #[test]
    fn a_chain_has_as_many_descriptors_as_a_large_queue_and_no_more() {
        let mut driver = Driver::new(&[16]);
        add_indirect(&mut driver, 1024);
        let chain = driver.queues().pop(0).unwrap().unwrap();
        assert_eq!(chain.count(), 1024);

        let mut driver = Driver::new(&[16]);
        add_indirect(&mut driver, 1025);
        let refused = driver.queues().pop(0);
        assert!(matches!(refused, Err(QueueError::Chain { index: 0, .. })));
    }

    /// What a driver and a device do in turn.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Add,
        Pop,
        Unpop,
        Push,
        Take,
    }

    proptest! {
        /// Chains come in their order and are given back once, also where the indices wrap.
        #[test]
        fn chains_come_and_go_in_order_wherever_the_indices_stand(
            start in prop_oneof![Just(0), any::<u16>(), u16::MAX - 8..],
            steps in vec(
                prop::sample::select(vec![Step::Add, Step::Pop, Step::Unpop, Step::Push, Step::Take]),
                0..300,
            ),
        ) {
            let mut driver = Driver::new(&[8]);
            driver.start_at(0, start);
            let (mut added, mut popped, mut pushed) = (VecDeque::new(), Vec::new(), VecDeque::new());
            for step in steps {
                match step {
                    Step::Add if driver.free(0) > 0 => {
                        added.push_back(driver.add(0, &[Buffer::Writable(8)]));
                    }
                    Step::Pop => {
                        let head = driver.queues().pop(0).unwrap().map(|chain| chain.head_index());
                        prop_assert_eq!(head, added.pop_front());
                        popped.extend(head);
                    }
                    Step::Unpop => {
                        if let Some(head) = popped.pop() {
                            driver.queues().unpop(0);
                            added.push_front(head);
                        }
                    }
                    Step::Push if !popped.is_empty() => {
                        let head = popped.remove(0);
                        driver.queues().push(0, head, 3).unwrap();
                        pushed.push_back(head);
                    }
                    Step::Take => {
                        let used = driver.used(0).map(|used| (used.head, used.written.len()));
                        prop_assert_eq!(used, pushed.pop_front().map(|head| (head, 3)));
                    }
                    Step::Add | Step::Push => {}
                }
            }
        }
    }

    #[test]
    fn a_chain_that_runs_in_a_circle_ends() {
        let mut driver = Driver::new(&[16]);
        let head = driver.add(0, &[Buffer::Raw(0x1000, 1, 1)]);
        let chain = driver.queues().pop(0).unwrap().unwrap();
        assert_eq!(chain.head_index(), head);
        assert_eq!(chain.count(), 16);
    }

    #[test]
    fn an_available_index_that_jumps_is_an_error() {
        let mut driver = Driver::new(&[16]);
        for _ in 0..17 {
            driver.offer(0, 0);
        }
        let refused = driver.queues().pop(0);
        assert!(matches!(refused, Err(QueueError::Ring { index: 0, .. })));
    }

    #[test]
    fn a_queue_that_was_not_set_up_is_left_alone() {
        let mut driver = Driver::new(&[16]);
        driver.add(0, &[Buffer::Writable(8)]);
        driver.retire(0);
        let mut queues = driver.queues();
        assert!(queues.pop(0).unwrap().is_none());
        queues.listen(0).unwrap();
        queues.notify(0).unwrap();
        assert!(!driver.kicked(0) && !driver.interrupted());
    }

    /// virtio 1.3 §2.7.10.1: what became available before the device listened is not announced.
    #[test]
    fn chains_that_came_before_the_device_listened_are_found() {
        let mut driver = Driver::new(&[16]);
        driver.queues().listen(0).unwrap();
        assert!(!driver.kicked(0));
        driver.add(0, &[Buffer::Writable(8)]);
        assert!(driver.device_listens(0));
        driver.queues().listen(0).unwrap();
        assert!(driver.kicked(0));
    }
}
