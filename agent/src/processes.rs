//! What `ps` would tell of a container's processes (proc(5)).
//!
//! A command line is read from the process's own memory, and the process can see to it that this takes
//! for ever (a page that a file system of its own is to fill). So a child of the agent looks, and has
//! `PATIENCE` for it; of a container whose processes are like that, the command lines are not told.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use agent_protocol::{MAX_COMMAND_LINE, MAX_PROCESSES};
use nix::unistd::alarm;
use serde::{Deserialize, Serialize};

use crate::operation::{self, OperationError};
use crate::reaper::Reaper;

/// How long all command lines together may take to be read, in seconds.
const PATIENCE: u32 = 2;

/// A process that is, or has just been.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its process id in the guest's first pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Its `comm`.
    pub name: Vec<u8>,
    /// Arguments with a NUL behind each.
    pub command_line: Vec<u8>,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// It has ended and was not waited for.
    pub zombie: bool,
}

/// Describes processes, those with the lowest ids if there are too many; one that ends meanwhile is left
/// out.
///
/// # Errors
/// `Start`: of looking without command lines there is nothing that could fail.
pub async fn describe(
    reaper: &Reaper,
    mut pids: Vec<i32>,
) -> Result<Vec<Description>, OperationError> {
    pids.sort_unstable();
    pids.truncate(MAX_PROCESSES);
    let with_lines = operation::run(reaper, "look at processes", &[], || {
        alarm::set(PATIENCE);
        Ok(look(&pids, command_line))
    });
    match with_lines.await {
        Err(OperationError::Died { .. }) => Ok(look(&pids, |_| Vec::new())),
        described => described,
    }
}

fn look(pids: &[i32], command_line: impl Fn(&Path) -> Vec<u8>) -> Vec<Description> {
    let described = pids.iter().filter_map(|&pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read(process.join("stat")).ok()?;
        let status = fs::read(process.join("status")).ok()?;
        Some(Description {
            pid,
            command_line: command_line(&process),
            uid: effective_id(&status, b"Uid:")?,
            gid: effective_id(&status, b"Gid:")?,
            ..of_stat(&stat)?
        })
    });
    described.collect()
}

fn command_line(process: &Path) -> Vec<u8> {
    let mut line = Vec::new();
    if let Ok(file) = File::open(process.join("cmdline")) {
        let limit = u64::try_from(MAX_COMMAND_LINE).unwrap_or_default();
        // What was read before an error is as good as any.
        let _ = file.take(limit).read_to_end(&mut line);
    }
    line
}

/// Name, state and start in `/proc/PID/stat`. The name, in parentheses, may hold anything.
fn of_stat(stat: &[u8]) -> Option<Description> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = str::from_utf8(&stat[close + 1..]).ok()?;
    let mut fields = fields.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    Some(Description {
        name: stat.get(open + 1..close)?.to_owned(),
        // Field 22; the state is field 3.
        started: fields.nth(18)?.parse().ok()?,
        zombie,
        ..Description::default()
    })
}

/// The second number of a line of `/proc/PID/status`.
fn effective_id(status: &[u8], line: &[u8]) -> Option<u32> {
    let mut lines = status.split(|&byte| byte == b'\n');
    let ids = lines.find_map(|text| text.strip_prefix(line))?;
    str::from_utf8(ids)
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_what_it_likes() {
        let stat = b"7 (a) S 1\n) Z 5 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let described = of_stat(stat).unwrap();
        assert_eq!(described.name, b"a) S 1\n");
        assert_eq!((described.started, described.zombie), (4242, true));
        for broken in [&b""[..], b"7", b"7 )(", b"7 (a) S 1"] {
            assert_eq!(of_stat(broken), None);
        }
    }

    #[test]
    fn the_effective_id_is_the_second() {
        let status = b"Name:\tUid: 9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(effective_id(status, b"Uid:"), Some(2));
        assert_eq!(effective_id(status, b"Gid:"), Some(6));
        assert_eq!(effective_id(b"", b"Uid:"), None);
    }

    #[tokio::test]
    async fn who_looks_sees_itself_and_not_those_that_are_gone() {
        let reaper = Reaper::start().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let described = describe(&reaper, vec![i32::MAX, own]).await.unwrap();
        let [described] = &described[..] else {
            panic!("{described:?}")
        };
        let line = fs::read("/proc/self/cmdline").unwrap();
        let shown = line.len().min(MAX_COMMAND_LINE);
        assert_eq!(described.command_line, line[..shown]);
        assert_eq!((described.pid, described.zombie), (own, false));
        assert!(!described.name.is_empty());
    }
}
