//! virtio-rng (virtio 1.3 §5.4): the driver offers buffers, the device fills them with entropy.
//!
//! Threat: a guest that asks for gigabytes. A request is answered with at most 64 KiB, whatever it
//! offers, a notification with at most one queue of requests, and the machine's description may limit
//! both over time.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::rate_limit::RateLimiter;
use crate::virtio::device::{Device, DeviceError, DeviceId, Traffic};
use crate::virtio::queue::{Queues, writer};

/// Most bytes that one request is given.
const MAX_BYTES: usize = 64 * 1024;

/// Bytes drawn at a time: what the kernel returns without a pause (getrandom(2)).
const CHUNK: usize = 256;

/// Where entropy comes from.
pub trait Entropy: Send {
    /// Fills the beginning of `bytes`, and tells how many of them.
    ///
    /// # Errors
    /// When there is no more.
    fn draw(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
}

/// The host's, by way of `getrandom(2)`.
#[derive(Debug, Default)]
pub struct Host;

impl Entropy for Host {
    fn draw(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(getrandom(bytes, GetRandomFlags::empty())?)
    }
}

/// The device.
#[derive(Debug)]
pub struct Rng<E = Host> {
    source: E,
    limit: RateLimiter,
    traffic: Traffic,
}

impl Rng {
    /// One that gives no more of the host's entropy than `limit` allows.
    #[must_use]
    pub fn new(limit: RateLimiter) -> Self {
        Self {
            source: Host,
            limit,
            traffic: Traffic::default(),
        }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::of(Host)
    }
}

impl<E: Entropy> Rng<E> {
    /// One that gives as much as is asked for, of `source`.
    #[must_use]
    pub fn of(source: E) -> Self {
        Self {
            source,
            limit: RateLimiter::default(),
            traffic: Traffic::default(),
        }
    }
}

impl<E: Entropy> Device for Rng<E> {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        let traffic = &mut self.traffic;
        let source = &mut self.source;
        queues.drain_within(&mut self.limit, index, |chain| {
            let mut buffer = writer(index, ram, &chain)?;
            let wanted = buffer.available_bytes().min(MAX_BYTES);
            let mut written = 0;
            while written < wanted {
                let mut entropy = [0; CHUNK];
                let length = CHUNK.min(wanted - written);
                // Fewer bytes than asked for are a right answer (§5.4.6.1), also after a failure.
                let Ok(length) = source.draw(&mut entropy[..length]) else {
                    break;
                };
                if buffer.write_all(&entropy[..length]).is_err() {
                    break;
                }
                written += length;
            }
            traffic.to_guest += written as u64;
            traffic.errors += u64::from(written < wanted);
            Ok(u32::try_from(written).expect("at most MAX_BYTES"))
        })?;
        Ok(())
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        self.limit.timer()
    }

    fn serve_backend(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.serve(0, queues)
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_control::{RateLimit, TokenBucket};

    use super::*;
    use crate::virtio::queue::testing::{Buffer, Driver};

    #[test]
    fn a_buffer_is_filled() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Writable(300)]);
        let mut rng = Rng::default();
        rng.serve(0, &mut driver.queues()).unwrap();
        let used = driver.used(0).unwrap();
        assert_eq!(used.written.len(), 300);
        assert_eq!((rng.traffic().to_guest, rng.traffic().errors), (300, 0));
        assert!(used.written.iter().any(|&byte| byte != 0));
    }

    /// A peer made room for whatever the guest asked for (Firecracker #5762).
    #[test]
    fn firecracker_5762_a_huge_buffer_is_filled_in_part() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Writable(0x3_0000)]);
        Rng::default().serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), MAX_BYTES);
    }

    /// A host that has so many bytes left.
    struct Few(usize);

    impl Entropy for Few {
        fn draw(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.0);
            self.0 -= length;
            bytes[..length].fill(7);
            match length {
                0 => Err(io::ErrorKind::Other.into()),
                length => Ok(length),
            }
        }
    }

    /// virtio 1.3 §5.4.6.1: fewer bytes than were asked for are an answer.
    #[test]
    fn a_guest_whose_host_fails_gets_what_there_was() {
        let mut driver = Driver::new(&[64]);
        for _ in 0..2 {
            driver.add(0, &[Buffer::Writable(600)]);
        }
        Rng::of(Few(700)).serve(0, &mut driver.queues()).unwrap();
        let written = [(); 2].map(|()| driver.used(0).unwrap().written);
        assert_eq!(written, [vec![7; 600], vec![7; 100]]);
    }

    /// As many requests as fit, each as large as there may be, and one notification.
    #[test]
    fn a_flood_of_requests_is_one_queue_of_work() {
        let mut driver = Driver::new(&[64]);
        let head = driver.add(0, &[Buffer::Raw(0x1000_0000, u32::MAX >> 4, 2)]);
        for _ in 0..63 {
            driver.offer(0, head);
        }
        Rng::default().serve(0, &mut driver.queues()).unwrap();
        let ram = driver.ram.clone();
        let [.., used] = driver.rings(0);
        let (served, written): (u16, u32) = (
            ram.read_obj(GuestAddress(used + 2)).unwrap(),
            ram.read_obj(GuestAddress(used + 8)).unwrap(),
        );
        assert_eq!((served, written as usize), (64, MAX_BYTES));
        assert!(!driver.kicked(0), "nothing is left");
    }

    #[test]
    fn a_buffer_for_reading_gets_nothing() {
        let mut driver = Driver::new(&[64]);
        driver.add(0, &[Buffer::Readable(b"tide")]);
        Rng::default().serve(0, &mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written.len(), 0);
    }

    #[test]
    fn a_guest_over_its_limit_waits_and_is_then_served() {
        let limit = RateLimit {
            bytes: None,
            operations: Some(TokenBucket {
                per_second: NonZeroU64::new(50).unwrap(),
                burst: 1,
            }),
        };
        let mut rng = Rng::new(RateLimiter::new(limit).unwrap());
        let mut driver = Driver::new(&[64]);
        driver.queues().listen(0).unwrap();
        for _ in 0..4 {
            driver.add(0, &[Buffer::Writable(8)]);
        }
        rng.serve(0, &mut driver.queues()).unwrap();
        let mut served = std::iter::from_fn(|| driver.used(0)).count();
        assert!((1..4).contains(&served), "{served}");
        assert!(!driver.device_listens(0), "it would not serve it");
        while served < 4 {
            let timer = rng.backend().unwrap();
            let patience = Timespec::try_from(Duration::from_secs(10)).unwrap();
            assert_eq!(
                poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&patience)),
                Ok(1)
            );
            rng.serve_backend(&mut driver.queues()).unwrap();
            served += std::iter::from_fn(|| driver.used(0)).count();
        }
    }
}
