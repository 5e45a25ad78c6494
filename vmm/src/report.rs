//! What the VMM says on standard error about its guest and its backends.
//!
//! Threat: a guest that breaks its devices over and over to fill the host's logs, or the pipe to who
//! reads them, on which the loop would then wait. So the lines are few: a burst, and then one now
//! and again. Failures of the machine itself do not come here; the shim is told them as the reason.

use std::fmt::Arguments;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may come at once. Together they are far smaller than a pipe's buffer of 64 KiB.
const BURST: u32 = 32;

/// One more line may come each time this has passed.
const PAUSE: Duration = Duration::from_secs(10);

static LIMIT: Mutex<Option<Limit>> = Mutex::new(None);

/// Says one line, unless there were too many.
pub fn warn(line: Arguments<'_>) {
    let now = Instant::now();
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    match limit.get_or_insert_with(|| Limit::new(now)).admit(now) {
        Some(0) => eprintln!("hull-vmm: {line}"),
        Some(dropped) => eprintln!("hull-vmm: {line} ({dropped} lines before it left out)"),
        None => {}
    }
}

/// Makes a panic on any thread the end of the process, with what happened on one line. Aborting would
/// take system calls that no thread's filter has, and be no signal for the first process of a pid
/// namespace.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        eprintln!("hull-vmm: {text}");
        end();
    }));
}

/// Ends the process by `exit_group` alone, which every thread's filter has. Exiting as usual would run what
/// Rust and the C library do at the end: on a vCPU's thread the filter stops that, and takes the blame.
#[expect(unsafe_code, reason = "no crate that is here ends a process so")]
fn end() -> ! {
    // SAFETY: ends the process; nothing is left half done that anybody else would read.
    unsafe { libc::_exit(1) }
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A bucket of tokens, one a line.
#[derive(Debug)]
struct Limit {
    tokens: u32,
    filled: Instant,
    dropped: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
            dropped: 0,
        }
    }

    /// Whether a line may be said now, and how many were not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let pauses = now.duration_since(self.filled).as_secs() / PAUSE.as_secs();
        let due = u32::try_from(pauses).unwrap_or(u32::MAX);
        if due > 0 {
            self.tokens = self.tokens.saturating_add(due).min(BURST);
            self.filled = now;
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open the gate")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn an_error_is_told_with_its_cause() {
        let error = Outer(std::fmt::Error);
        let cause = std::fmt::Error;
        assert_eq!(chain(&error), format!("open the gate: {cause}"));
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let said = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(said, BURST as usize);
        assert_eq!(limit.admit(start + PAUSE), Some(1000 - u64::from(BURST)));
        assert_eq!(limit.admit(start + PAUSE), None);
    }

    #[test]
    fn a_quiet_time_earns_a_burst_and_no_more() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let later = start + PAUSE * 10_000;
        let said = (0..1000).filter(|_| limit.admit(later).is_some()).count();
        assert_eq!(said, BURST as usize);
    }
}
