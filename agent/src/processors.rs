//! The machine's processors. It boots with one; the others are there, and are brought up when a
//! container comes that may use them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::warn;
use oci_spec::runtime::LinuxCpu;

/// Where the kernel has them (`Documentation/core-api/cpu_hotplug.rst`).
const FOLDER: &str = "/sys/devices/system/cpu";

/// How many a container may use, counted from the first: as many as its quota fills, or up to the
/// last of its set. `None` is all.
#[must_use]
pub fn usable(cpu: Option<&LinuxCpu>) -> Option<usize> {
    let cpu = cpu?;
    if let Some(set) = cpu.cpus().as_deref().filter(|set| !set.is_empty()) {
        return last_of(set).map(|last| last.saturating_add(1));
    }
    // No quota, and what runc takes for none.
    let quota = cpu.quota().filter(|&quota| quota > 0)?.unsigned_abs();
    let period = cpu.period().filter(|&period| period > 0);
    // The kernel's default.
    let period = period.unwrap_or(100_000);
    usize::try_from(quota.div_ceil(period)).ok()
}

/// The highest number in a list such as `0-3,7` (cpuset(7)).
fn last_of(set: &str) -> Option<usize> {
    let ends = set.split(',').map(|range| {
        let end = range.rsplit('-').next().unwrap_or(range);
        end.trim().parse().ok()
    });
    ends.collect::<Option<Vec<usize>>>()?.into_iter().max()
}

/// Brings up the first `count`, or all. One that does not come is left: the container runs on those
/// there are.
pub async fn bring_up(count: Option<usize>) {
    let work = move || {
        for number in 1..count.unwrap_or(usize::MAX) {
            let switch = path(Path::new(FOLDER), number);
            match fs::write(&switch, "1") {
                Ok(()) => {}
                // The machine has no more.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return,
                Err(e) => warn!("bring up a processor: write {}: {e}", switch.display()),
            }
        }
    };
    if let Err(e) = tokio::task::spawn_blocking(work).await {
        warn!("bring up processors: {e}");
    }
}

fn path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("cpu{number}")).join("online")
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpuBuilder;

    use super::*;

    fn cpu(quota: Option<i64>, period: Option<u64>, cpus: Option<&str>) -> LinuxCpu {
        let mut cpu = LinuxCpuBuilder::default().build().unwrap();
        cpu.set_quota(quota)
            .set_period(period)
            .set_cpus(cpus.map(str::to_owned));
        cpu
    }

    #[test]
    fn a_quota_is_rounded_up_and_none_is_all() {
        for (quota, period, count) in [
            (Some(150_000), Some(100_000), Some(2)),
            (Some(100_000), None, Some(1)),
            (Some(1), Some(100_000), Some(1)),
            (Some(0), Some(100_000), None),
            (Some(-1), Some(100_000), None),
            (Some(400_000), Some(0), Some(4)),
            (None, Some(100_000), None),
        ] {
            assert_eq!(usable(Some(&cpu(quota, period, None))), count, "{quota:?}");
        }
        assert_eq!(usable(None), None);
    }

    #[test]
    fn a_set_needs_all_up_to_its_last() {
        for (set, count) in [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("7,0-3", Some(8)),
            ("", Some(1)),
            ("0-x", None),
            ("18446744073709551615", Some(usize::MAX)),
        ] {
            let cpu = cpu(Some(100_000), None, Some(set));
            assert_eq!(usable(Some(&cpu)), count, "{set:?}");
        }
    }
}
