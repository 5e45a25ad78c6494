//! Processes that can be told apart from later ones with the same pid.

use std::fmt;
use std::fs;
use std::str::FromStr;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process: its pid, and when it started in clock ticks since boot (proc_pid_stat(5)). A pid that
/// is used again comes with another start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its process id.
    pub pid: u32,
    started: u64,
}

impl ProcessIdentity {
    /// The process that has this pid now, if one does that has not ended.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let Stat { state, started, .. } = Stat::read(pid)?;
        // One that has ended and was not waited for holds nothing any more.
        (state != "Z").then_some(Self { pid, started })
    }

    /// Whether it has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Kills it, and no other process that may have its pid by now.
    pub fn kill(&self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return;
        };
        // The descriptor is of one process for ever; whether it is of this one is asked afterwards.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_running()
        {
            // Fails only if it has just ended.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// The processes it started that have not ended yet.
    #[must_use]
    pub fn children(&self) -> Vec<Self> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| Stat::read(pid).is_some_and(|stat| stat.parent == self.pid))
            .filter_map(Self::of)
            .collect()
    }
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

/// A text that no [`ProcessIdentity`] was written as.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no process id with a start time")]
pub struct NoIdentity(String);

impl FromStr for ProcessIdentity {
    type Err = NoIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(' ').and_then(|(pid, started)| {
            Some(Self {
                pid: pid.parse().ok()?,
                started: started.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| NoIdentity(text.to_owned()))
    }
}

/// What is wanted of `/proc/PID/stat`.
struct Stat {
    state: String,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name, in parentheses, may hold any bytes; after it come state, parent and, at last,
        // field 22, the start.
        let fields = text.rsplit(|&byte| byte == b')').next()?;
        let fields = std::str::from_utf8(fields).ok()?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        Some(Self {
            state: (*fields.first()?).to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_bytes_does_not_shift_the_fields() {
        let stat = b"7 (a) S 1\xff) S 5 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!(
            (stat.state.as_str(), stat.parent, stat.started),
            ("S", 5, 4242)
        );
    }

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!(own.is_running());
        for text in ["", "7", "7 x", "-7 5", "7 5 3"] {
            assert!(text.parse::<ProcessIdentity>().is_err(), "{text}");
        }
    }

    #[test]
    fn another_process_of_the_same_pid_is_another() {
        let pid = std::process::id();
        assert!(!ProcessIdentity { pid, started: 1 }.is_running());
    }

    #[test]
    fn a_process_knows_its_children_until_they_end() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let is_child = |p: &ProcessIdentity| p.pid == child.id();
        assert!(own.children().iter().any(is_child));
        ProcessIdentity::of(child.id()).unwrap().kill();
        assert!(!child.wait().unwrap().success());
        assert!(!own.children().iter().any(|p| p.pid == child.id()));
    }
}
