//! What other programs say (the guest's agent, the VMM, virtiofsd) becomes lines of the shim's log.
//!
//! The agent's words come from a guest that may be anyone's: lines are cut, control characters
//! replaced, and a flood is counted instead of written, or a container could fill the host's disk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::info;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line in bytes; the rest of a longer one is dropped.
const MAX_LINE: usize = 2048;

/// Lines written in each [`PERIOD`].
const MAX_LINES: u32 = 200;
const PERIOD: Duration = Duration::from_secs(1);

/// The last line a program has said, for the error that tells of its end.
#[derive(Debug, Clone, Default)]
pub struct LastLine(Arc<Mutex<String>>);

impl LastLine {
    /// The line; empty when nothing has been said.
    #[must_use]
    pub fn get(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, line: &str) {
        line.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a guest has said, as it can be shown: one line, cut, without control characters.
#[must_use]
pub fn cleaned(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_LINE);
    text[..end].replace(|c: char| c.is_control() && c != '\t', "\u{fffd}")
}

/// Copies lines to the shim's log, with the speaker's `name` before them, until the source ends.
pub async fn copy(name: &str, mut source: impl AsyncRead + Unpin, last: &LastLine) {
    let mut lines = Lines::default();
    let mut quota = Quota::new(Instant::now());
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = source.read(&mut chunk).await {
        lines.push(&chunk[..length], |line| {
            last.set(line);
            match quota.admit(Instant::now()) {
                Admission::Line => info!("{name}: {line}"),
                Admission::LineAfter { dropped } => {
                    info!("{name}: ({dropped} lines are left out)");
                    info!("{name}: {line}");
                }
                Admission::Drop => {}
            }
        });
    }
    lines.finish(|line| {
        last.set(line);
        info!("{name}: {line}");
    });
}

/// Splits bytes into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                self.finish(&mut line);
            } else if self.partial.len() < MAX_LINE {
                self.partial.push(byte);
            }
        }
    }

    /// Ends the line; an empty one is none.
    fn finish(&mut self, mut line: impl FnMut(&str)) {
        let text = cleaned(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        if !text.is_empty() {
            line(&text);
        }
    }
}

/// How many lines may still be written in the current period.
#[derive(Debug)]
struct Quota {
    since: Instant,
    written: u32,
    dropped: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Line,
    LineAfter { dropped: u32 },
    Drop,
}

impl Quota {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            written: 0,
            dropped: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        if now.duration_since(self.since) >= PERIOD {
            let dropped = self.dropped;
            *self = Self::new(now);
            self.written = 1;
            return if dropped == 0 {
                Admission::Line
            } else {
                Admission::LineAfter { dropped }
            };
        }
        if self.written == MAX_LINES {
            self.dropped = self.dropped.saturating_add(1);
            return Admission::Drop;
        }
        self.written += 1;
        Admission::Line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| found.push(line.to_owned()));
        }
        lines.finish(|line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(
            split(&[b"hi", b"gh\n\nlo", b"w"]),
            ["high".to_owned(), "low".to_owned()]
        );
    }

    #[test]
    fn a_line_that_never_ends_is_cut_and_the_next_is_whole() {
        let found = split(&[&vec![b'x'; 3 * MAX_LINE], b"\nlow\n"]);
        assert_eq!((found[0].len(), found[1].as_str()), (MAX_LINE, "low"));
    }

    #[test]
    fn what_could_forge_a_line_or_steer_a_terminal_is_replaced() {
        assert_eq!(
            split(&[b"a\r\x1b[2Jb\xff\n"]),
            ["a\u{fffd}\u{fffd}[2Jb\u{fffd}"]
        );
    }

    #[test]
    fn what_a_guest_says_is_cut_between_characters() {
        let long = "ü".repeat(MAX_LINE);
        assert_eq!(cleaned(&long), "ü".repeat(MAX_LINE / 2));
        assert_eq!(
            cleaned("x").len() + cleaned("\u{9b}31m\n").len(),
            1 + 3 + 3 + 3
        );
    }

    #[test]
    fn a_flood_is_counted_and_the_count_is_told_when_it_is_over() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        let admitted = (0..MAX_LINES + 7)
            .filter(|_| quota.admit(start) == Admission::Line)
            .count();
        assert_eq!(admitted, MAX_LINES as usize);
        assert_eq!(
            quota.admit(start + PERIOD),
            Admission::LineAfter { dropped: 7 }
        );
        assert_eq!(quota.admit(start + PERIOD), Admission::Line);
    }

    #[tokio::test]
    async fn the_last_line_is_kept() {
        let last = LastLine::default();
        copy("test", &b"high\nlow"[..], &last).await;
        assert_eq!(last.get(), "low");
    }
}
