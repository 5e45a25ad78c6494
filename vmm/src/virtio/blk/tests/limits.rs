//! A disk that may do only so much in a second.

use vmm_control::{RateLimit, TokenBucket};

use super::*;

/// Fifty requests a second, of which one at once.
fn limited_disk(queues: u16) -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * SECTOR).unwrap();
    let limit = RateLimit {
        bytes: None,
        operations: Some(TokenBucket {
            per_second: 50.try_into().unwrap(),
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
