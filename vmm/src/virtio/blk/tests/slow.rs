//! A file that answers when it likes.

use std::sync::{Mutex, mpsc};

use super::*;

/// A disk whose file answers when the test says so: by one message for each request.
fn slow_disk(queues: u16) -> (Blk, mpsc::Sender<()>) {
    let (blk, answer, _) = slow_disk_that_tells(queues);
    (blk, answer)
}

/// The same, and it tells when it begins with a request.
fn slow_disk_that_tells(queues: u16) -> (Blk, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * SECTOR).unwrap();
    let image = Image::new(file.into(), false).unwrap();
    let (answer, may_answer) = mpsc::channel();
    let may_answer = Arc::new(Mutex::new(may_answer));
    let (begin, began) = mpsc::channel();
    let run = move |job: Job| {
        let _ = begin.send(());
        let _ = may_answer.lock().unwrap().recv();
        job.run()
    };
    let start = threads("slow", Filters::unjailed(), run);
    let mut blk = Blk::with(queues, RateLimiter::default(), start).unwrap();
    blk.insert(image, "slow");
    (blk, answer, began)
}

#[test]
fn a_file_that_does_not_answer_keeps_nobody_waiting_and_answers_come_when_they_are_there() {
    let (mut blk, answer) = slow_disk(1);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    for _ in 0..3 {
        flush(&mut driver, 0);
    }
    blk.serve(0, &mut driver.queues()).unwrap();
    assert!(driver.used(0).is_none() && !ready(&blk, Duration::ZERO));
    // What needs no file is answered meanwhile.
    let identify = header(8, 0);
    driver.add(0, &[Buffer::Readable(&identify), Buffer::Writable(21)]);
    blk.serve(0, &mut driver.queues()).unwrap();
    assert_eq!(&driver.used(0).unwrap().written[..4], b"slow");
    assert!(driver.interrupted());

    for left in [2, 1, 0] {
        answer.send(()).unwrap();
        assert!(ready(&blk, Duration::from_secs(10)));
        blk.serve_backend(&mut driver.queues()).unwrap();
        assert_eq!(driver.used(0).unwrap().written, [0]);
        assert!(driver.interrupted());
        assert_eq!(in_flight(&blk), left);
    }
}

/// A peer's table of requests, by head, lost the first of two, and with it the buffer that the kernel
/// was still filling.
#[test]
fn cve_2026_45782_a_head_that_is_in_flight_is_refused() {
    let (mut blk, _answer) = slow_disk(1);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    let head = flush(&mut driver, 0);
    driver.offer(0, head);
    let served = blk.serve(0, &mut driver.queues());
    assert!(matches!(served, Err(DeviceError::Queue(_))), "{served:?}");
    assert_eq!(in_flight(&blk), 1);

    // Once it was given back it is as good as any.
    let (mut blk, answer) = slow_disk(1);
    // Of two descriptors, which take turns as heads.
    let mut driver = Driver::new(&[2]);
    for _ in 0..4 {
        flush(&mut driver, 0);
        blk.serve(0, &mut driver.queues()).unwrap();
        answer.send(()).unwrap();
        settle(&mut blk, &mut driver);
        assert_eq!(driver.used(0).unwrap().written, [0]);
    }
}

#[test]
fn a_reset_forgets_requests_and_a_disk_that_hangs_does_not_go_live_again_until_it_answers() {
    let (mut blk, answer, began) = slow_disk_that_tells(1);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    flush(&mut driver, 0);
    flush(&mut driver, 0);
    blk.serve(0, &mut driver.queues()).unwrap();
    began.recv().unwrap();
    blk.reset();
    assert_eq!(in_flight(&blk), 0);
    let flushes = 1 << VIRTIO_BLK_F_FLUSH;
    let activated = blk.activate(flushes, &mut driver.queues());
    assert!(matches!(activated, Err(DeviceError::Backend(_))));
    // Nothing is done any more on behalf of the driver that is gone.
    answer.send(()).unwrap();
    blk.lanes[0]
        .worker
        .settle(Instant::now() + Duration::from_secs(10));
    assert!(!blk.lanes[0].worker.hangs());
    assert!(!ready(&blk, Duration::ZERO));
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    blk.activate(flushes, &mut driver.queues()).unwrap();
    flush(&mut driver, 0);
    blk.serve(0, &mut driver.queues()).unwrap();
    answer.send(()).unwrap();
    settle(&mut blk, &mut driver);
    assert_eq!(driver.used(0).unwrap().written, [0]);
    assert!(driver.used(0).is_none());
}

/// The driver has given up, and not reset it.
#[test]
fn a_disk_that_is_halted_does_nothing_more_for_its_driver_and_waits_once() {
    let (mut blk, answer, began) = slow_disk_that_tells(2);
    let mut driver = Driver::new(&[QUEUE_SIZE; 2]);
    flush(&mut driver, 0);
    flush(&mut driver, 0);
    blk.serve(0, &mut driver.queues()).unwrap();
    began.recv().unwrap();
    let halts = Instant::now();
    blk.halt();
    assert!(halts.elapsed() >= PATIENCE);
    assert_eq!(in_flight(&blk), 0);
    let again = Instant::now();
    for _ in 0..10 {
        blk.halt();
    }
    assert!(again.elapsed() < PATIENCE);
    assert!(blk.lanes[0].worker.hangs());

    // The second was not begun, and never is.
    answer.send(()).unwrap();
    blk.lanes[0]
        .worker
        .settle(Instant::now() + Duration::from_secs(10));
    assert!(!ready(&blk, Duration::ZERO) && began.try_recv().is_err());

    // One that ends in time is waited for.
    flush(&mut driver, 1);
    blk.serve(1, &mut driver.queues()).unwrap();
    began.recv().unwrap();
    let answering = std::thread::spawn(move || answer.send(()));
    blk.halt();
    answering.join().unwrap().unwrap();
    assert!(!blk.lanes[1].worker.hangs());
}

#[test]
fn queues_are_served_side_by_side_and_there_are_no_more_than_a_few() {
    let (mut blk, answer) = slow_disk(9);
    assert_eq!(blk.queue_sizes(), [QUEUE_SIZE; MAX_QUEUES as usize]);
    let mut number = [0; 2];
    blk.read_config(34, &mut number);
    assert_eq!(u16::from_le_bytes(number), MAX_QUEUES);
    let mut driver = Driver::new(&[QUEUE_SIZE; 2]);
    for queue in [0, 1] {
        flush(&mut driver, queue);
        blk.serve(queue, &mut driver.queues()).unwrap();
        // The head is the same in both, and in flight in both.
        assert_eq!(in_flight(&blk), queue + 1);
    }
    for _ in 0..2 {
        answer.send(()).unwrap();
    }
    settle(&mut blk, &mut driver);
    for queue in [0, 1] {
        assert_eq!(driver.used(queue).unwrap().written, [0]);
    }
}

/// A guest that does not let go of its disk.
#[test]
fn a_file_is_taken_away_from_requests_that_are_being_carried_out() {
    let (mut blk, answer, began) = slow_disk_that_tells(1);
    let mut driver = Driver::new(&[QUEUE_SIZE]);
    flush(&mut driver, 0);
    blk.serve(0, &mut driver.queues()).unwrap();
    began.recv().unwrap();
    let file = Arc::downgrade(blk.image.as_ref().unwrap());

    blk.eject();

    assert_eq!(in_flight(&blk), 0);
    // What still works on the file has it, and no other has: the disk is not to be used meanwhile.
    assert_eq!(file.strong_count(), 1);
    let other = tempfile::tempfile().unwrap();
    blk.insert(Image::new(other.into(), true).unwrap(), "next");
    assert!(blk.activate(0, &mut driver.queues()).is_err());
    answer.send(()).unwrap();
    blk.lanes[0]
        .worker
        .settle(Instant::now() + Duration::from_secs(10));
    blk.activate(0, &mut driver.queues()).unwrap();
    assert_eq!(file.strong_count(), 0);

    // Nor is a queue of a disk that is gone served.
    blk.eject();
    flush(&mut driver, 0);
    assert!(blk.serve(0, &mut driver.queues()).is_err());
}
