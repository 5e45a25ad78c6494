//! Processes that have to be there as long as their sandbox is.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;
use tokio::process::Child;
use tokio::sync::watch;

use crate::log_lines::{self, LastLine};

/// How long the last line of a process that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why a sandbox is over, once it is: the first reason that anyone gives.
#[derive(Debug, Clone)]
pub struct Gone(watch::Sender<Option<String>>);

impl Default for Gone {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Gone {
    /// Says why, unless that is known.
    pub fn tell(&self, reason: String) {
        self.0.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(reason);
            }
            first
        });
    }

    /// Whether the sandbox is known to be over.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until the sandbox is over.
    pub async fn reason(&self) -> String {
        let mut reason = self.0.subscribe();
        // The sender is a field of `self`, so it cannot go away first.
        let told = reason.wait_for(Option::is_some).await;
        told.ok().and_then(|told| told.clone()).unwrap_or_default()
    }
}

/// A process whose end is its sandbox's, and which ends with it.
#[derive(Debug)]
pub struct Supervised {
    /// Its process id.
    pub pid: u32,
    /// What it said last.
    pub last_line: LastLine,
    kill: watch::Sender<bool>,
    /// How it ended, once it has.
    status: watch::Receiver<Option<String>>,
}

impl Supervised {
    /// Supervises a process just started: logs its standard error and waits for its end.
    #[must_use]
    pub fn new(name: &'static str, mut child: Child) -> Self {
        let pid = child.id().unwrap_or_default();
        let last_line = LastLine::default();
        let last_words = child.stderr.take().map(|stderr| {
            let last = last_line.clone();
            tokio::spawn(async move { log_lines::copy(name, stderr, &last).await })
        });
        let last = last_line.clone();
        let (kill, mut killed) = watch::channel(false);
        let (over, status) = watch::channel(None);
        tokio::spawn(async move {
            let ended = tokio::select! {
                status = child.wait() => status,
                () = until_true(&mut killed) => {
                    // Fails only if it has just ended by itself.
                    let _ = child.start_kill();
                    child.wait().await
                }
            };
            let ended = match ended {
                Ok(status) if status.signal() == Some(libc::SIGSYS) => {
                    // Which call it was stands in its last line, on its way here.
                    if let Some(last_words) = last_words {
                        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
                    }
                    stopped_by_filter(status, &last.get())
                }
                Ok(status) => status.to_string(),
                Err(e) => e.to_string(),
            };
            let _ = over.send(Some(format!("{name} ended: {ended}")));
        });
        Self {
            pid,
            last_line,
            kill,
            status,
        }
    }

    /// Waits until it has ended; tells how.
    pub fn ended(&self) -> impl Future<Output = String> + use<> {
        let mut status = self.status.clone();
        async move {
            let ended = status.wait_for(Option::is_some).await;
            ended
                .ok()
                .and_then(|ended| ended.clone())
                .unwrap_or_default()
        }
    }

    /// Gives it `patience` to end by itself, then kills it; in either case waits for its end.
    pub async fn end(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            let _ = self.kill.send(true);
            self.ended().await;
        }
    }
}

/// A process that made a system call which its filter does not let through.
fn stopped_by_filter(status: ExitStatus, last_line: &str) -> String {
    let mut text = format!("stopped by its system-call filter, {status}");
    if !last_line.is_empty() {
        text.push_str(": ");
        text.push_str(last_line);
    }
    text
}

/// Waits until the value is true, or nobody can make it so any more.
async fn until_true(value: &mut watch::Receiver<bool>) {
    let _ = value.wait_for(|&value| value).await;
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_first_reason_stays() {
        let gone = Gone::default();
        assert!(!gone.is_told());
        gone.tell("high".into());
        gone.tell("low".into());
        assert_eq!(gone.reason().await, "high");
    }

    #[tokio::test]
    async fn how_a_process_ends_is_told_and_its_last_words_are_kept() {
        let child = Command::new("sh")
            .args(["-c", "echo low tide >&2; exit 3"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let supervised = Supervised::new("tide", child);
        assert_eq!(supervised.ended().await, "tide ended: exit status: 3");
        while supervised.last_line.get().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(supervised.last_line.get(), "low tide");
        // There is nothing to wait for any more.
        supervised.end(Duration::from_secs(1000)).await;
    }

    #[tokio::test]
    async fn a_process_that_its_filter_stopped_is_told_with_its_last_line() {
        let child = Command::new("sh")
            .args(["-c", "echo call 41 >&2; kill -SYS $$"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = Supervised::new("tide", child).ended().await;
        let expected = "tide ended: stopped by its system-call filter, signal: 31 (SIGSYS)";
        assert!(ended.starts_with(expected), "{ended}");
        assert!(ended.ends_with(": call 41"), "{ended}");
    }

    #[tokio::test]
    async fn a_process_that_does_not_end_is_killed_and_waited_for() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let supervised = Supervised::new("tide", child);
        supervised.end(Duration::from_millis(1)).await;
        assert!(!std::path::Path::new(&format!("/proc/{}", supervised.pid)).exists());
    }
}
