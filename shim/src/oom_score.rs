//! How soon the host's kernel ends a process when memory is short (`oom_score_adj`, proc(5)): -1000 to 1000, where
//! more is sooner.

use std::fs;

use rustix::fs::{Mode, OFlags};

use crate::process_identity::ProcessIdentity;

/// Sets this process's, to a number in ASCII. It allocates nothing.
///
/// # Errors
/// `ACCESS` if it is less than it was and the process lacks `CAP_SYS_RESOURCE`.
pub fn set_own(score: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(&file, score).map(drop)
}

/// Has these processes and their children end as soon as one with `score`, if that is sooner than they would.
pub fn raise(processes: &[ProcessIdentity], score: i32) {
    for process in processes {
        // Children were born with their parent's, so there is nothing to look for where that is enough.
        if raise_one(process, score) {
            for child in process.children() {
                raise_one(&child, score);
            }
        }
    }
}

/// Whether it would have ended later than that.
fn raise_one(process: &ProcessIdentity, score: i32) -> bool {
    let path = format!("/proc/{}/oom_score_adj", process.pid);
    let now = fs::read_to_string(&path).ok();
    let now: Option<i32> = now.and_then(|text| text.trim().parse().ok());
    // One that has just ended has none, and whoever has its pid by now is not it.
    let is_later = now.is_some_and(|now| now < score) && process.is_running();
    if is_later {
        let _ = fs::write(&path, score.to_string());
    }
    is_later
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_raised_and_never_lowered() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let process = ProcessIdentity::of(child.id()).unwrap();
        let after = |score| {
            raise(&[process], score);
            let text = fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid));
            text.unwrap().trim().to_owned()
        };
        assert_eq!(after(500), "500");
        assert_eq!(after(-998), "500");
        assert_eq!(after(1000), "1000");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
