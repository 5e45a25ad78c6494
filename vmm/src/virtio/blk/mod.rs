//! virtio-blk (virtio 1.3 §5.2): a host file as the guest's disk.
//!
//! The file may come while the machine runs, and go again. Without one there is no device for the
//! driver, only its registers (`DeviceID` 0, §4.2.3.1.1): the guest looks again when it is told to.
//!
//! The file is raw bytes. Its format is never guessed (GHSA-jmr4-g2hv-mjj6), and whether it may be
//! written is decided here, not by the guest or the descriptor. A block device's sectors are the disk's
//! (`blk_size`), or a file system on it would be another one on the host.
//!
//! ```text
//!  chain ──▶ request ──▶ answered at once: what the page cache has, the serial number, refusals
//!                 └────▶ worker's queue ──▶ file ──▶ done ──▶ status ──▶ used ring
//! ```
//! `request` decodes, `answer` decides, `config` is the configuration space, and a `worker` for each queue does what
//! may have to wait. The cache is write-back: a flush makes it durable, and for a driver that knows no
//! flush every write is one (§5.2.6.2).
//!
//! Threat: chains of any layout, sectors of any number, requests that keep the loop from everybody
//! else. A chain without room for header and status breaks the queue; a request that makes no sense,
//! that is larger than the configuration space says, or that the host fails, gets a status. A turn
//! ends after 4 MiB, to which requests and their descriptors count too; the rest of the queue waits for the
//! next. A head that comes again before it was
//! given back breaks the queue (CVE-2026-45782: a peer's table of requests lost the first, whose
//! buffer was freed under the kernel).

mod answer;
mod config;
mod job;
mod lane;
mod parts;
mod request;
mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use self::answer::{Answer, File, Next, block_size, capacity};
use self::config::{Config, Limits};
use self::job::{Done, Job, Operation};
use self::lane::Lane;
use self::parts::Parts;
use self::request::{ID_LEN, RANGE_MAX, RANGES_MAX, length};
use self::worker::Worker;
use crate::backend::image::Image;
use crate::jail::Filters;
use crate::rate_limit::RateLimiter;
use crate::virtio::device::{Device, DeviceError, DeviceId, Traffic};
use crate::virtio::queue::{Chain, QueueError, Queues};

const QUEUE_SIZE: u16 = 256;

/// Most queues. Each is a thread, which mostly waits.
pub const MAX_QUEUES: u16 = 4;

/// Most data segments of a request: a queue's descriptors less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Most bytes of a segment.
const SIZE_MAX: u32 = 128 * 1024;

/// Most bytes of a request, which follows from the two.
const REQUEST_MAX: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

/// Bytes after which others have their turn: a few milliseconds' work.
const TURN_BYTES: u64 = 4 * 1024 * 1024;

/// What any request costs of a turn besides the bytes that are read at once.
const REQUEST_COST: u64 = 4 * 1024;

/// What each of its descriptors costs: they are read twice, and can be empty.
const DESCRIPTOR_COST: u64 = 128;

/// How long a reset, or whatever else ends a driver's use of the disk, waits for requests that are being
/// carried out. A vCPU waits meanwhile, and perhaps the loop.
const PATIENCE: Duration = Duration::from_secs(1);

/// A disk.
#[derive(Debug)]
pub struct Blk {
    /// Without one, there is no device.
    image: Option<Arc<Image>>,
    serial: [u8; ID_LEN as usize],
    config: Config,
    limit: RateLimiter,
    queue_sizes: Vec<u16>,
    lanes: Vec<Lane>,
    /// Which lane is served first: the limit may leave nothing for those behind it.
    first: usize,
    /// Rung by workers, and for a queue that nobody else would come back to.
    bell: OwnedFd,
    /// Of the bell and the limit's timer.
    epoll: OwnedFd,
    /// Whether each write is to be durable before it is answered.
    write_through: bool,
    traffic: Traffic,
}

impl Blk {
    /// A disk of the image's whole sectors, with so many queues, but no more than [`MAX_QUEUES`], that
    /// does no more than `limit` allows, its threads confined by `filters`. `serial` is cut at 20
    /// bytes.
    ///
    /// # Errors
    /// When the host has no thread or descriptor to spare, or a thread cannot be confined.
    pub fn new(
        image: Image,
        serial: &str,
        queues: u16,
        limit: RateLimiter,
        filters: Filters,
    ) -> io::Result<Self> {
        let mut disk = Self::with(queues, limit, threads(serial, filters, Job::run))?;
        disk.insert(image, serial);
        Ok(disk)
    }

    /// A disk without an image so far. It has one queue, and its thread, as none can be started later.
    ///
    /// # Errors
    /// As [`Blk::new`].
    pub fn spare(filters: Filters) -> io::Result<Self> {
        let limit = RateLimiter::default();
        Self::with(1, limit, threads("spare", filters, Job::run))
    }

    /// A disk without an image and without threads: it does what it is asked for when
    /// [`Blk::carry_out`] is called. For tests and fuzz targets, which are the same each time.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    #[cfg(any(test, feature = "testing"))]
    pub fn by_hand(queues: u16) -> io::Result<Self> {
        Self::with(queues, RateLimiter::default(), |_, bell| Worker::idle(bell))
    }

    /// Does the next thing that a queue's requests ask for; tells whether there was one.
    #[cfg(any(test, feature = "testing"))]
    pub fn carry_out(&mut self, queue: usize) -> bool {
        (self.lanes.get(queue)).is_some_and(|lane| lane.worker.carry_out(Job::run))
    }

    /// A disk without an image, with a worker for each queue, which `start` makes.
    fn with(
        queues: u16,
        limit: RateLimiter,
        start: impl Fn(u16, &OwnedFd) -> io::Result<Worker>,
    ) -> io::Result<Self> {
        let queues = queues.clamp(1, MAX_QUEUES);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [Some(bell.as_fd()), limit.timer()].into_iter().flatten() {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN)?;
        }
        let lanes = (0..queues)
            .map(|queue| {
                let worker = start(queue, &bell)?;
                Ok(Lane::new(worker, QUEUE_SIZE))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            image: None,
            serial: [0; ID_LEN as usize],
            config: Config::new(Limits {
                capacity: 0,
                size_max: SIZE_MAX,
                seg_max: SEG_MAX,
                queues,
                range_max: RANGE_MAX,
                ranges_max: RANGES_MAX,
            }),
            limit,
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            lanes,
            first: 0,
            bell,
            epoll,
            write_through: false,
            traffic: Traffic::default(),
        })
    }

    /// Makes it a disk of the image's whole sectors. `serial` is cut at 20 bytes.
    pub fn insert(&mut self, image: Image, serial: &str) {
        self.serial = [0; ID_LEN as usize];
        for (to, from) in self.serial.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        self.config.set_capacity(capacity(&image));
        self.config.set_block_size(block_size(&image));
        self.image = Some(Arc::new(image));
    }

    /// Whether it has an image.
    #[must_use]
    pub fn is_inserted(&self) -> bool {
        self.image.is_some()
    }

    /// Takes the image away, whatever the driver thinks of that. The file is closed as soon as nothing
    /// is being done to it.
    pub fn eject(&mut self) {
        self.forget();
        self.hush();
        self.image = None;
        self.config.set_capacity(0);
    }

    /// Forgets every request, also those that are being carried out.
    fn forget(&mut self) {
        self.lanes.iter_mut().for_each(Lane::forget);
    }

    /// Takes a chain on: it is answered, or with the worker. Returns what it took of the turn.
    fn begin(
        &mut self,
        index: usize,
        queues: &mut Queues<'_>,
        chain: Chain<'_>,
    ) -> Result<u64, QueueError> {
        let broken = |what| QueueError::Chain { index, what };
        let ram = queues.ram();
        let head = chain.head_index();
        let lane = self.lanes.get_mut(index).ok_or(broken("no such queue"))?;
        match lane.in_flight.get(usize::from(head)) {
            Some(None) => {}
            Some(Some(_)) => return Err(broken("request available again before it was answered")),
            None => return Err(broken("head that is no descriptor")),
        }
        let parts = Parts::take(index, ram, chain)?;
        let status_at = parts.status_at;
        let cost = REQUEST_COST + parts.descriptors * DESCRIPTOR_COST;
        let bytes = length(&parts.readable) + length(&parts.writable);
        let image = self.image.clone().ok_or(broken("no disk"))?;
        let next = self.file(&image).decide(ram, parts);
        self.limit.spend(bytes.min(REQUEST_MAX) + next.zeroes());
        match next {
            Next::Answer(answer) => {
                answer.give(index, queues, head, status_at, &mut self.traffic)?;
                Ok(cost + u64::from(answer.data))
            }
            Next::Work(operation, segments) => {
                let lane = &mut self.lanes[index];
                lane.in_flight[usize::from(head)] = Some(status_at);
                if matches!(operation, Operation::Write { .. }) {
                    self.traffic.from_guest += length(&segments);
                }
                lane.worker.submit(Job {
                    head,
                    operation,
                    image,
                    ram: ram.clone(),
                    segments,
                    forgotten: Arc::default(),
                });
                Ok(cost)
            }
        }
    }

    /// What requests are about, while the image is `image`.
    fn file<'a>(&'a self, image: &'a Image) -> File<'a> {
        File {
            image,
            serial: &self.serial,
            write_through: self.write_through,
        }
    }

    /// Gives every queue that has something, as far as is known, its turn.
    fn serve_due(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let count = self.lanes.len();
        for index in (self.first..count).chain(0..self.first) {
            if self.lanes[index].due {
                self.serve_lane(index, queues)?;
            }
        }
        self.first = (self.first + 1) % count;
        // The wait may have ended since one of them was told to wait, and the limit, asked for another, has
        // stopped the timer.
        if !self.limit.is_waiting() && self.lanes.iter().any(|lane| lane.due) {
            self.ring();
        }
        Ok(())
    }

    fn serve_lane(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        let mut left = TURN_BYTES;
        while left > 0
            && self.limit.ready()
            && let Some(chain) = queues.pop(index)?
        {
            left = left.saturating_sub(self.begin(index, queues, chain)?);
        }
        self.lanes[index].due = self.limit.is_waiting();
        // If chains are left, this makes the queue ready again at once. Over the limit, the timer
        // does.
        if !self.lanes[index].due {
            queues.listen(index)?;
        }
        queues.notify(index)
    }

    /// Has the loop come back after the others' turn; it fails only when it rings already, very often.
    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Quietens the bell; it fails only when that has not rung.
    fn hush(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Answers what the workers have done.
    fn finish(&mut self, queues: &mut Queues<'_>) -> Result<(), QueueError> {
        self.hush();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let all = lane.worker.take_done();
            if all.is_empty() {
                continue;
            }
            for done in all {
                let status_at = (lane.in_flight.get_mut(usize::from(done.head)))
                    .and_then(Option::take)
                    .expect("a job has an entry until it is done or forgotten");
                let answer = done.written.map_or(Answer::FAILED, Answer::done);
                answer.give(index, queues, done.head, status_at, &mut self.traffic)?;
            }
            queues.notify(index)?;
        }
        Ok(())
    }
}

impl Device for Blk {
    fn id(&self) -> DeviceId {
        match self.image {
            Some(_) => DeviceId::Block,
            None => DeviceId::Nothing,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_MQ;
        if self
            .image
            .as_ref()
            .is_some_and(|image| image.is_read_only())
        {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, _: &mut Queues<'_>) -> Result<(), DeviceError> {
        if self.image.is_none() {
            return Err(DeviceError::Backend("there is no disk".to_owned()));
        }
        if self.lanes.iter().any(|lane| lane.worker.hangs()) {
            let what = "the file of a disk has not answered since before the last reset";
            return Err(DeviceError::Backend(what.to_owned()));
        }
        // A driver that does not flush takes what was answered for durable (§5.2.6.2).
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        Ok(())
    }

    fn reset(&mut self) {
        self.forget();
        let deadline = Instant::now() + PATIENCE;
        for lane in &self.lanes {
            lane.worker.settle(deadline);
        }
        self.hush();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if let Some(lane) = self.lanes.get_mut(index) {
            lane.due = true;
        }
        Ok(self.serve_due(queues)?)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.finish(queues)?;
        Ok(self.serve_due(queues)?)
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn halt(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // What was waited for in vain before is not waited for again: a driver can have this called with
        // each of its writes. The disk does not go live before that has ended.
        let hung: Vec<_> = (self.lanes.iter())
            .map(|lane| lane.worker.hangs())
            .collect();
        self.forget();
        for (lane, _) in self.lanes.iter().zip(hung).filter(|(_, hung)| !hung) {
            lane.worker.settle(deadline);
        }
        self.hush();
    }
}

/// Starts the worker of a queue: a thread that has `disk` in its name, and carries jobs out with `run`.
fn threads(
    disk: &str,
    filters: Filters,
    run: impl Fn(Job) -> Done + Clone + Send + 'static,
) -> impl Fn(u16, &OwnedFd) -> io::Result<Worker> {
    move |queue, bell| {
        // Linux keeps 15 bytes of it.
        let name = format!("disk{queue} {disk}");
        Worker::start(name, bell, filters, run.clone())
    }
}

#[cfg(test)]
mod tests;
