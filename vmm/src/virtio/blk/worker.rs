//! A thread that carries the requests of one queue out, one after another, so that a slow file keeps
//! nobody else waiting: not the loop, and with it not vsock, the network or the control socket.
//!
//! ```text
//!  queued ──▶ carried out ──▶ done: the eventfd rings, the device takes it
//!     └───────────┴── forget
//! ```
//! A thread and not io_uring: a ring's set-up takes longer than a machine's start, hardened hosts
//! forbid it, and it would put the kernel's largest source of escapes behind the jail's filter.
//! Reads that the page cache can answer do not come here at all.
//!
//! Threat: a guest that resets its disk while the file hangs. What was not begun is dropped. What was
//! begun still works on the guest's memory, so whatever ends its driver's use of the disk waits for it a
//! moment, in which ranges are left as they are, and the disk does not go live again before it has ended. Memory is
//! never freed under it: a job owns a reference.
//! There are no more jobs than the queue has descriptors, as each has a head of its own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::job::{Done, Job};
use crate::jail::{Filters, Thread};

/// The thread's handle. It ends when this is dropped, as soon as the file lets it.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    /// Rings when there is something done.
    bell: OwnedFd,
    state: Mutex<State>,
    /// There is a job, or the end.
    work: Condvar,
    /// A job has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queued: VecDeque<Job>,
    done: Vec<Done>,
    /// A job is being carried out; whether nobody waits for it any more, which it looks at itself, too.
    begun: Option<Arc<AtomicBool>>,
    closed: bool,
}

impl Worker {
    /// Starts a thread called `name`, which carries jobs out with `run`, confined by `filters`.
    ///
    /// # Errors
    /// When the host has no thread or descriptor to spare, or the thread cannot be confined.
    pub(super) fn start(
        name: String,
        bell: &OwnedFd,
        filters: Filters,
        run: impl Fn(Job) -> Done + Send + 'static,
    ) -> io::Result<Self> {
        let this = Self::idle(bell)?;
        let shared = Arc::clone(&this.shared);
        filters.start(Thread::Disk, name, move || shared.serve(run))?;
        Ok(this)
    }

    /// One without a thread.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub(super) fn idle(bell: &OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            bell: bell.try_clone()?,
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        });
        Ok(Self { shared })
    }

    /// Carries out the next job, if there is one, on the caller's thread.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn carry_out(&self, run: impl Fn(Job) -> Done) -> bool {
        let job = self.shared.lock().begin();
        job.map(|job| self.shared.end(run(job))).is_some()
    }

    /// Queues a job.
    pub(super) fn submit(&self, job: Job) {
        self.shared.lock().queued.push_back(job);
        self.shared.work.notify_one();
    }

    /// What was done since the last time, in the order of the ends.
    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.shared.lock().done)
    }

    /// Forgets every job, also the one that is being carried out.
    pub(super) fn forget(&self) {
        let mut state = self.shared.lock();
        state.queued.clear();
        state.done.clear();
        if let Some(forgotten) = &state.begun {
            // Read by `Job::is_wanted`, and under this lock.
            forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for the job that is being carried out, if any, but not for longer than `deadline`.
    pub(super) fn settle(&self, deadline: Instant) {
        let patience = deadline.saturating_duration_since(Instant::now());
        let state = self.shared.lock();
        let waited =
            (self.shared.ended).wait_timeout_while(state, patience, |state| state.begun.is_some());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether a job that was forgotten still works on the guest's memory.
    pub(super) fn hangs(&self) -> bool {
        self.shared.lock().begun.as_deref().is_some_and(is_set)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.queued.clear();
        state.closed = true;
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, run: impl Fn(Job) -> Done) {
        while let Some(job) = self.next() {
            self.end(run(job));
        }
    }

    /// Waits for the next job, which is being carried out from now on, or the end.
    fn next(&self) -> Option<Job> {
        let idle = |state: &mut State| state.queued.is_empty() && !state.closed;
        let waited = self.work.wait_while(self.lock(), idle);
        waited.unwrap_or_else(PoisonError::into_inner).begin()
    }

    fn end(&self, done: Done) {
        let mut state = self.lock();
        if !state.begun.take().as_deref().is_some_and(is_set) {
            state.done.push(done);
            // It fails only when it rings already, very often.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
        drop(state);
        self.ended.notify_all();
    }
}

impl State {
    /// Takes the next job, if there is one, which is being carried out from now on.
    fn begin(&mut self) -> Option<Job> {
        let job = self.queued.pop_front()?;
        self.begun = Some(Arc::clone(&job.forgotten));
        Some(job)
    }
}

fn is_set(forgotten: &AtomicBool) -> bool {
    forgotten.load(Ordering::Relaxed)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use vm_memory::GuestAddress;

    use super::super::job::Operation;
    use super::*;
    use crate::backend::image::Image;
    use crate::memory::{self, Ram};

    /// A worker whose jobs begin and end when the test says so.
    struct Slow {
        worker: Worker,
        bell: OwnedFd,
        began: mpsc::Receiver<u16>,
        end: mpsc::Sender<()>,
        image: Arc<Image>,
        ram: Ram,
        /// Of the jobs that are submitted from now on.
        forgotten: Arc<AtomicBool>,
    }

    fn slow() -> Slow {
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (tell, began) = mpsc::channel();
        let (end, may_end) = mpsc::channel();
        let run = move |job: Job| {
            tell.send(job.head).unwrap();
            let _ = may_end.recv();
            Done {
                head: job.head,
                written: Some(0),
            }
        };
        Slow {
            worker: Worker::start("slow".to_owned(), &bell, Filters::unjailed(), run).unwrap(),
            bell,
            began,
            end,
            image: Arc::new(Image::new(tempfile::tempfile().unwrap().into(), true).unwrap()),
            ram: memory::allocate(&[(GuestAddress(0), 0x1000)]).unwrap(),
            forgotten: Arc::default(),
        }
    }

    impl Slow {
        fn submit(&self, head: u16) {
            self.worker.submit(Job {
                head,
                operation: Operation::Flush,
                image: Arc::clone(&self.image),
                ram: self.ram.clone(),
                segments: Vec::new(),
                forgotten: Arc::clone(&self.forgotten),
            });
        }

        /// Whether the bell has rung since the last time.
        fn rings(&self) -> bool {
            rustix::io::read(&self.bell, &mut [0; 8]).is_ok()
        }

        /// Lets the job that has begun end, and waits for that.
        fn finish(&self) {
            self.end.send(()).unwrap();
            self.worker.settle(Instant::now() + Duration::from_secs(10));
        }
    }

    #[test]
    fn jobs_are_carried_out_in_order_and_ring_when_they_are_done() {
        let slow = slow();
        slow.submit(7);
        slow.submit(3);
        for head in [7, 3] {
            assert_eq!(slow.began.recv(), Ok(head));
            assert!(!slow.rings() && slow.worker.take_done().is_empty());
            slow.end.send(()).unwrap();
            let patience = Timespec::try_from(Duration::from_secs(10)).unwrap();
            let mut fds = [PollFd::new(&slow.bell, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&patience)), Ok(1));
            assert!(slow.rings());
            let done = slow.worker.take_done();
            assert_eq!((done.len(), done[0].head), (1, head));
        }
    }

    #[test]
    fn a_job_that_was_forgotten_is_waited_for_but_not_for_ever_and_never_reported() {
        let mut slow = slow();
        slow.submit(1);
        slow.submit(2);
        assert_eq!(slow.began.recv(), Ok(1));
        slow.worker.forget();
        assert!(is_set(&slow.forgotten), "the job is told");
        slow.forgotten = Arc::default();
        slow.worker
            .settle(Instant::now() + Duration::from_millis(20));
        assert!(slow.worker.hangs());
        slow.finish();
        assert!(!slow.worker.hangs());
        assert!(slow.worker.take_done().is_empty() && !slow.rings());

        // The second never began; what comes after is as if nothing had been.
        slow.submit(5);
        assert_eq!(slow.began.recv(), Ok(5));
        slow.finish();
        assert_eq!(slow.worker.take_done()[0].head, 5);
    }

    #[test]
    fn the_thread_ends_with_its_handle() {
        let Slow {
            worker, began, end, ..
        } = slow();
        drop(worker);
        drop(end);
        // Its end of the channel is gone.
        assert_eq!(began.recv(), Err(mpsc::RecvError));
    }
}
