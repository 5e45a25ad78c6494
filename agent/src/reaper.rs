//! The one owner of SIGCHLD: tells whoever asks how a process ended.
//!
//! As PID 1 the agent inherits every orphan of the guest, so a process may end before anybody knew
//! its id: a container's init is the child of a short-lived one, which names it only in its last
//! message. While such news is expected (`Reaper::expect`), the ends of unknown processes are kept.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 + signal.
    pub status: u32,
    /// By the guest's clock.
    pub at: SystemTime,
}

/// A handle to the task that reaps; clones share it.
#[derive(Clone, Default)]
pub struct Reaper {
    ledger: Arc<Mutex<Ledger>>,
}

/// Who waits, and who ended unasked.
#[derive(Default)]
struct Ledger {
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    unclaimed: HashMap<i32, Exit>,
    /// How many `Expectation`s exist; `unclaimed` is empty when none does.
    expectations: usize,
}

/// While it lives, the ends of unknown processes are kept for `Reaper::exit_of`.
pub struct Expectation<'a>(&'a Reaper);

impl Reaper {
    /// Starts to reap, on the calling thread's runtime.
    ///
    /// # Errors
    /// What `sigaction(2)` says.
    pub fn start() -> io::Result<Self> {
        let children = signal(SignalKind::child())?;
        let reaper = Self::default();
        tokio::spawn(reaper.clone().reap_on(children));
        Ok(reaper)
    }

    /// Announces that a process whose id is not known yet will be asked for.
    pub fn expect(&self) -> Expectation<'_> {
        self.ledger().expectations += 1;
        Expectation(self)
    }

    /// Completes when the process has ended, at once if it ended during an expectation that still
    /// lives. A process is asked for once.
    pub fn exit_of(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut ledger = self.ledger();
        match ledger.unclaimed.remove(&pid) {
            // The receiver is in our hands, so this cannot fail.
            Some(exit) => drop(sender.send(exit)),
            None => drop(ledger.waiting.insert(pid, sender)),
        }
        receiver
    }

    async fn reap_on(self, mut children: Signal) {
        while children.recv().await.is_some() {
            // One signal may stand for many children (signal(7), "standard signals do not queue").
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.record(pid.as_raw_nonzero().get(), status);
            }
        }
    }

    fn record(&self, pid: i32, status: WaitStatus) {
        let Some(status) = exit_status(status) else {
            return;
        };
        let exit = Exit {
            status,
            at: SystemTime::now(),
        };
        let mut ledger = self.ledger();
        match ledger.waiting.remove(&pid) {
            // Whoever asked may have gone.
            Some(waiting) => drop(waiting.send(exit)),
            None if ledger.expectations > 0 => drop(ledger.unclaimed.insert(pid, exit)),
            None => {}
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expectation<'_> {
    fn drop(&mut self) {
        let mut ledger = self.0.ledger();
        ledger.expectations -= 1;
        if ledger.expectations == 0 {
            ledger.unclaimed.clear();
        }
    }
}

/// The status a shell would show, or `None` for a process that has not ended.
fn exit_status(status: WaitStatus) -> Option<u32> {
    let signal = || status.terminating_signal().map(|signal| 128 + signal);
    let status = status.exit_status().or_else(signal)?;
    u32::try_from(status).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    /// The calling process's children are the test runner's process's own: nextest runs each test
    /// in its own.
    #[tokio::test]
    async fn a_process_that_ended_before_it_was_asked_for_is_remembered() {
        let reaper = Reaper::start().unwrap();
        let expectation = reaper.expect();
        let first = sys::fork(&[], || 7).unwrap();
        let second = sys::fork(&[], || 8).unwrap();

        let second_exit = reaper.exit_of(second).await.unwrap();
        let first_exit = reaper.exit_of(first).await.unwrap();
        drop(expectation);

        assert_eq!((first_exit.status, second_exit.status), (7, 8));
        assert!(reaper.ledger().unclaimed.is_empty());
    }

    #[tokio::test]
    async fn an_end_that_nobody_expects_is_forgotten() {
        let reaper = Reaper::start().unwrap();
        sys::fork(&[], || 0).unwrap();
        let asked_for = sys::fork(&[], || 0).unwrap();

        reaper.exit_of(asked_for).await.unwrap();

        assert!(reaper.ledger().unclaimed.is_empty());
    }

    #[tokio::test]
    async fn a_real_time_signal_counts_from_128() {
        const SIGRTMIN: i32 = 34;
        let reaper = Reaper::start().unwrap();
        let _expectation = reaper.expect();
        let killed = sys::fork(&[], || {
            let own = i32::try_from(std::process::id()).unwrap();
            sys::kill(own, SIGRTMIN).map_or(1, |()| 2)
        })
        .unwrap();

        let exit = reaper.exit_of(killed).await.unwrap();

        assert_eq!(exit.status, 162);
    }
}
