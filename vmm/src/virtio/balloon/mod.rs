//! virtio-balloon (virtio 1.3 §5.5): the guest gives memory back to the host.
//!
//! In two ways: it reports pages that are free (`VIRTIO_BALLOON_F_PAGE_REPORTING`), on its own
//! account and without any loss, since the next touch brings a page of zeroes; and it gives up as
//! much as [`Balloon::set_target`] asks for, of which it takes back what it must before it kills a
//! process (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`). Nothing has to be done for a page that comes back.
//!
//! Threat: a guest that names pages that are not its own, or so many that the loop does nothing else.
//! Only whole pages within the guest's memory are given back, and losing them is its own loss; what
//! lies outside is passed over. Arrays have a bound (Firecracker #5794 was one without), and so has
//! the work of a turn. `num_pages` and `actual` are counted in pages, never multiplied here
//! (Firecracker #6076).

mod pages;

use std::io::Read;
use std::ops::Range;

use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use self::pages::{PAGE, ranges, whole_pages};
use crate::memory::{self, Ram};
use crate::report;
use crate::virtio::device::{Device, DeviceError, DeviceId, copy_config};
use crate::virtio::queue::{Chain, QueueError, Queues, reader};

/// Feature bits (§5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 2;
const VIRTIO_BALLOON_F_PAGE_REPORTING: u64 = 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// §5.5.2 gives it the number 4, behind queues for statistics and hints. Linux numbers the queues
/// that there are, and those two are not offered.
const REPORTING: usize = 2;
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];

/// Most page numbers of one array. Linux has 256.
const MAX_PAGES: usize = 1024;

/// Bytes given back after which others have their turn, and what giving back costs besides: a
/// system call, and the loss of a mapping on every vCPU.
const TURN_BYTES: u64 = 128 << 20;
const RANGE_COST: u64 = 256 << 10;

/// The balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    /// `num_pages`: how many the guest should give up.
    target: u32,
    /// `actual`: how many it says it has.
    actual: u32,
}

impl Balloon {
    /// An empty balloon that is to stay so.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the guest to give up `mib` MiB altogether. The transport has to tell the driver.
    pub fn set_target(&mut self, mib: u32) {
        let pages = u64::from(mib) * ((1 << 20) / PAGE);
        self.target = u32::try_from(pages).unwrap_or(u32::MAX);
    }

    /// Gives back the pages of an array; returns what that took of the turn.
    fn inflate(ram: &Ram, chain: &Chain<'_>) -> Result<u64, QueueError> {
        let mut array = reader(INFLATE, ram, chain)?;
        let length = array.available_bytes();
        if length > MAX_PAGES * size_of::<u32>() {
            let (index, what) = (INFLATE, "more page numbers than an array may have");
            return Err(QueueError::Chain { index, what });
        }
        let mut bytes = vec![0; length];
        let (index, what) = (INFLATE, "page numbers outside of memory");
        (array.read_exact(&mut bytes)).map_err(|_| QueueError::Chain { index, what })?;
        Ok(give_back(ram, ranges(&bytes)))
    }

    /// Gives back the memory that a chain's descriptors are.
    fn reported(ram: &Ram, chain: Chain<'_>) -> u64 {
        let ranges = chain
            .filter(Descriptor::is_write_only)
            .map(|descriptor| whole_pages(descriptor.addr().0, descriptor.len().into()));
        give_back(ram, ranges)
    }
}

/// Gives ranges of pages back to the host; returns what that took of the turn.
fn give_back(ram: &Ram, ranges: impl IntoIterator<Item = Range<u64>>) -> u64 {
    let mut cost = RANGE_COST;
    for range in ranges {
        let length = range.end - range.start;
        match memory::give_back(ram, GuestAddress(range.start), length) {
            Ok(given) => cost += given,
            // The guest loses nothing by it, and the host only what it would have gained.
            Err(error) => report::warn(format_args!("give guest memory back: {error}")),
        }
        cost += RANGE_COST;
    }
    cost
}

impl Device for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_PAGE_REPORTING
    }

    /// `struct virtio_balloon_config` (§5.5.4) as far as its features are offered.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = [self.target.to_le_bytes(), self.actual.to_le_bytes()];
        copy_config(config.as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.actual = u32::from_le_bytes(actual);
        }
    }

    fn reset(&mut self) {
        self.actual = 0;
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        let mut left = TURN_BYTES;
        while left > 0
            && let Some(chain) = queues.pop(index)?
        {
            let head = chain.head_index();
            let cost = match index {
                INFLATE => Self::inflate(ram, &chain)?,
                REPORTING => Self::reported(ram, chain),
                // The guest takes pages back by touching them.
                DEFLATE => RANGE_COST,
                _ => 0,
            };
            queues.push(index, head, 0)?;
            left = left.saturating_sub(cost);
        }
        queues.listen(index)?;
        Ok(queues.notify(index)?)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::SeekFrom;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::virtio::queue::testing::{Buffer, Driver};

    /// Untouched by the fake driver's rings and buffers.
    const FREE: u64 = 0x1800_0000;

    /// A driver with eight pages of sevens at [`FREE`].
    fn driver() -> Driver {
        let driver = Driver::new(&QUEUE_SIZES);
        driver
            .ram
            .write_slice(&[7; 0x8000], GuestAddress(FREE))
            .unwrap();
        driver
    }

    /// Which of the eight pages still have what was in them.
    fn kept(driver: &Driver) -> Vec<u64> {
        (0..8)
            .filter(|page| {
                let byte: u8 = driver
                    .ram
                    .read_obj(GuestAddress(FREE + page * PAGE))
                    .unwrap();
                byte == 7
            })
            .collect()
    }

    /// Which of them take the host's memory. Reading one is enough for that.
    fn allocated(driver: &Driver) -> Vec<u64> {
        let region = driver.ram.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        (0..8)
            .filter(|page| {
                let at = FREE + page * PAGE;
                rustix::fs::seek(file, SeekFrom::Data(at)) == Ok(at)
            })
            .collect()
    }

    fn numbers(pages: &[u64]) -> Vec<u8> {
        let number = |page: &u64| u32::try_from(FREE / PAGE + page).unwrap().to_le_bytes();
        pages.iter().flat_map(number).collect()
    }

    #[test]
    fn pages_the_guest_gives_up_go_back_to_the_host_and_read_as_zeroes() {
        let mut driver = driver();
        assert_eq!(allocated(&driver).len(), 8);
        driver.add(INFLATE, &[Buffer::Readable(&numbers(&[1, 2, 6]))]);
        Balloon::new().serve(INFLATE, &mut driver.queues()).unwrap();
        assert!(driver.used(INFLATE).unwrap().written.is_empty());
        assert_eq!(allocated(&driver), [0, 3, 4, 5, 7]);
        assert_eq!(kept(&driver), [0, 3, 4, 5, 7]);
        let byte: u8 = driver.ram.read_obj(GuestAddress(FREE + PAGE)).unwrap();
        assert_eq!(byte, 0);

        driver.add(DEFLATE, &[Buffer::Readable(&numbers(&[1, 2, 6]))]);
        Balloon::new().serve(DEFLATE, &mut driver.queues()).unwrap();
        assert!(driver.used(DEFLATE).is_some());
    }

    #[test]
    fn free_pages_that_are_reported_leave_the_host_s_memory() {
        let mut driver = driver();
        let (write, size) = (2, 0x2000);
        let report = [
            Buffer::Raw(FREE, size, write),
            Buffer::Raw(FREE + 0x5000, size, write),
        ];
        driver.add(REPORTING, &report);
        Balloon::new()
            .serve(REPORTING, &mut driver.queues())
            .unwrap();
        assert!(driver.used(REPORTING).is_some());
        assert_eq!(allocated(&driver), [2, 3, 4, 7]);
        assert_eq!(kept(&driver), [2, 3, 4, 7]);
    }

    /// libkrun 1.19.7: reports that lie outside of the guest's memory.
    #[test]
    fn what_is_no_memory_is_passed_over_and_pages_in_part_stay() {
        let mut driver = driver();
        let write = 2;
        let report = [
            Buffer::Raw(1 << 40, 0x2000, write),
            Buffer::Raw(u64::MAX - 0xfff, 0x2000, write),
            Buffer::Raw(FREE + 0x1001, 0x1fff, write),
            // For reading: it is not reported.
            Buffer::Raw(FREE + 0x4000, 0x1000, 0),
        ];
        for part in report {
            driver.add(REPORTING, &[part]);
        }
        let outside = [u32::MAX, 1 << 30].map(u32::to_le_bytes);
        driver.add(INFLATE, &[Buffer::Readable(outside.as_flattened())]);
        for queue in [REPORTING, INFLATE] {
            Balloon::new().serve(queue, &mut driver.queues()).unwrap();
        }
        assert_eq!(kept(&driver), [0, 1, 3, 4, 5, 6, 7]);
        assert!(driver.used(INFLATE).is_some());
    }

    #[test]
    fn firecracker_5794_an_array_without_end_breaks_the_queue() {
        let mut driver = driver();
        let array = vec![0; 4 * MAX_PAGES + 1];
        driver.add(INFLATE, &[Buffer::Readable(&array)]);
        let served = Balloon::new().serve(INFLATE, &mut driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))));
        // One that claims gigabytes is not even read.
        let mut driver = self::driver();
        driver.add(INFLATE, &[Buffer::Raw(0, u32::MAX, 0)]);
        let served = Balloon::new().serve(INFLATE, &mut driver.queues());
        assert!(matches!(served, Err(DeviceError::Queue(_))));
    }

    #[test]
    fn a_flood_of_reports_is_taken_in_turns() {
        let mut driver = driver();
        let write = 2;
        let mut balloon = Balloon::new();
        for _ in 0..100 {
            driver.add(REPORTING, &[Buffer::Raw(0x1000_0000, 8 << 20, write)]);
        }
        balloon.serve(REPORTING, &mut driver.queues()).unwrap();
        let served = std::iter::from_fn(|| driver.used(REPORTING)).count();
        assert!((10..20).contains(&served), "{served}");
        assert!(driver.kicked(REPORTING), "the rest is announced");
    }

    #[test]
    fn the_driver_reads_the_target_and_writes_what_it_has() {
        let mut balloon = Balloon::new();
        balloon.set_target(3);
        balloon.write_config(4, &5_u32.to_le_bytes());
        for (offset, data) in [
            (0, [9; 4].as_slice()),
            (4, &[9; 2]),
            (5, &[9; 4]),
            (usize::MAX, &[9; 4]),
        ] {
            balloon.write_config(offset, data);
        }
        let mut config = [0xee; 10];
        balloon.read_config(0, &mut config);
        assert_eq!(config, [0, 3, 0, 0, 5, 0, 0, 0, 0xee, 0xee]);
        balloon.reset();
        balloon.read_config(4, &mut config[..4]);
        assert_eq!(config[..4], [0; 4]);
    }

    /// A target in MiB wrapped when it became bytes.
    #[test]
    fn firecracker_6076_a_target_of_any_size_is_at_most_all_pages() {
        let mut balloon = Balloon::new();
        for (mib, pages) in [
            (0, 0),
            (1, 256),
            (1 << 23, 1 << 31),
            (1 << 24, u32::MAX),
            (u32::MAX, u32::MAX),
        ] {
            balloon.set_target(mib);
            assert_eq!(balloon.target, pages, "{mib}");
        }
    }
}
