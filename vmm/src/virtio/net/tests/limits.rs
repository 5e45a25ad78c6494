//! A card that may move only so much in a second.

use super::*;

/// Fifty frames a second, of which one at once.
fn slow() -> RateLimiter {
    let operations = vmm_control::TokenBucket {
        per_second: std::num::NonZeroU64::new(50).unwrap(),
        burst: 1,
    };
    RateLimiter::new(vmm_control::RateLimit {
        operations: Some(operations),
        bytes: None,
    })
    .unwrap()
}

/// Waits for the next event, which is to come without anybody's doing.
fn wait(guest: &mut Guest) {
    let backend = guest.net.backend().unwrap();
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(&backend, PollFlags::IN)], Some(&patience));
    assert_eq!(ready, Ok(1));
    guest.settle();
}

#[test]
fn a_guest_that_sends_more_than_its_limit_waits_and_loses_nothing() {
    let limits = Limits {
        transmit: slow(),
        ..Limits::default()
    };
    let mut guest = Guest::with(0, &QUEUE_SIZES, limits);
    for i in 0..4 {
        guest.send(&[Buffer::Readable(&PLAIN), Buffer::Readable(&[i])]);
    }
    assert!(guest.driver.free(TX) < usize::from(QUEUE_SIZES[TX]));
    for i in 0..4 {
        let sent = loop {
            match guest.sent() {
                Some(sent) => break sent,
                None => wait(&mut guest),
            }
        };
        assert_eq!(sent, [i]);
    }
}

#[test]
fn a_guest_that_is_sent_more_than_its_limit_gets_it_later() {
    let limits = Limits {
        receive: slow(),
        ..Limits::default()
    };
    let mut guest = Guest::with(0, &QUEUE_SIZES, limits);
    guest.post(8, 1526);
    for i in 0..4 {
        guest.arrive(&[i; 60]);
    }
    let mut waits = 0;
    for i in 0..4 {
        let frame = loop {
            match guest.frame() {
                Some(frame) => break frame,
                None => wait(&mut guest),
            }
            waits += 1;
        };
        assert_eq!(frame[VNET_HEADER_LEN..], [i; 60]);
    }
    assert!(waits > 0, "all came at once");
}
