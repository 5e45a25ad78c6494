//! A disk that may do only so much in a second.

use vmm_control::{RateLimit, TokenBucket};

use super::*;

/// Fifty requests a second, of which one at once.
fn limited_disk(queues: u16) -> Blk {
    disk_of(queues, 50)
}

/// So many requests a second, of which one at once.
fn disk_of(queues: u16, per_second: u64) -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * SECTOR).unwrap();
    let limit = RateLimit {
        bytes: None,
        operations: Some(TokenBucket {
            per_second: per_second.try_into().unwrap(),
            burst: 1,
        }),
    };
    let limit = RateLimiter::new(limit).unwrap();
    let image = Image::new(file.into(), false).unwrap();
    Blk::new(image, "kelp", queues, limit, Filters::unjailed()).unwrap()
}

/// Whoever is served when the wait is over must not make the device forget who waited.
#[test]
fn a_queue_that_the_limit_held_back_is_served_after_another_was() {
    let mut blk = limited_disk(2);
    let mut driver = Driver::new(&[QUEUE_SIZE; 2]);
    for _ in 0..3 {
        flush(&mut driver, 0);
    }
    blk.serve(0, &mut driver.queues()).unwrap();
    assert!(blk.limit.is_waiting());
    // The wait is over, but the loop hears of the other queue first.
    let timer = blk.limit.timer().unwrap();
    poll(&mut [PollFd::new(&timer, PollFlags::IN)], None).unwrap();
    flush(&mut driver, 1);
    blk.serve(1, &mut driver.queues()).unwrap();
    for (queue, all) in [(0, 3), (1, 1)] {
        let mut served = 0;
        while served < all {
            served += std::iter::from_fn(|| driver.used(queue)).count();
            if served < all {
                assert!(ready(&blk, Duration::from_secs(10)), "{queue} is forgotten");
                blk.serve_backend(&mut driver.queues()).unwrap();
            }
        }
    }
}

#[test]
fn a_disk_over_its_limit_rests_and_goes_on_by_itself() {
    let mut blk = limited_disk(1);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    for _ in 0..4 {
        flush(&mut driver, 0);
    }
    blk.serve(0, &mut driver.queues()).unwrap();
    let mut served = 0;
    assert!(blk.limit.is_waiting() && !driver.device_listens(0));
    while served < 4 {
        assert!(ready(&blk, Duration::from_secs(10)));
        blk.serve_backend(&mut driver.queues()).unwrap();
        served += std::iter::from_fn(|| driver.used(0)).count();
    }
}

/// The wait may end while others are served: then no timer is left to tell of the queue that waited. When it ends is the
/// machine's to say, so waits of many lengths are tried.
#[test]
fn no_queue_is_left_waiting_for_a_timer_that_another_has_stopped() {
    let identify = header(8, 0);
    for nanoseconds in (1_000..100_000).step_by(200) {
        let mut blk = disk_of(2, 1_000_000_000 / nanoseconds);
        let mut driver = Driver::new(&[QUEUE_SIZE; 2]);
        for _ in 0..4 {
            // Answered at once: a worker that has done something would ring the bell.
            for _ in 0..3 {
                let buffers = [Buffer::Readable(&identify), Buffer::Writable(21)];
                driver.add(0, &buffers);
            }
            blk.lanes[1].due = true;
            blk.serve(0, &mut driver.queues()).unwrap();
            while blk.lanes[0].due {
                assert!(ready(&blk, Duration::from_secs(10)), "it is forgotten");
                blk.serve_backend(&mut driver.queues()).unwrap();
            }
            while driver.used(0).is_some() {}
        }
    }
}

#[test]
fn zeroes_that_are_asked_for_count_as_bytes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let limit = RateLimit {
        bytes: Some(TokenBucket {
            per_second: 1000.try_into().unwrap(),
            burst: 4096,
        }),
        operations: None,
    };
    let image = Image::new(file.into(), false).unwrap();
    let limit = RateLimiter::new(limit).unwrap();
    let mut blk = Blk::new(image, "kelp", 1, limit, Filters::unjailed()).unwrap();
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    // All 2048 sectors.
    let range = [[0; 8], 2048_u64.to_le_bytes()].concat();
    let buffers = [
        Buffer::Readable(&header(13, 0)),
        Buffer::Readable(&range),
        Buffer::Writable(1),
    ];
    driver.add(0, &buffers);
    flush(&mut driver, 0);
    blk.serve(0, &mut driver.queues()).unwrap();
    assert!(blk.limit.is_waiting());
}
