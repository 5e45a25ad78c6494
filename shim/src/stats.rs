//! The texts of a cgroup's files as containerd's metrics (`io.containerd.cgroups.v2.Metrics`).
//!
//! The agent sends the files as they are. It is trusted less than this process: whatever does not
//! parse counts as zero, and never more is kept than the fields there are.

use std::collections::HashMap;

use containerd_shim::protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::MessageField;

/// Most devices listed in `io.stat`.
const MAX_DEVICES: usize = 256;

/// Reads the files by their names.
#[must_use]
pub fn metrics(files: &HashMap<String, String>) -> Metrics {
    Metrics {
        pids: MessageField::some(pids(files)),
        cpu: MessageField::some(cpu(files)),
        memory: MessageField::some(memory(files)),
        memory_events: MessageField::some(memory_events(files)),
        io: MessageField::some(io(files)),
        ..Default::default()
    }
}

fn pids(files: &HashMap<String, String>) -> PidsStat {
    PidsStat {
        current: number(files, "pids.current"),
        limit: number(files, "pids.max"),
        ..Default::default()
    }
}

fn cpu(files: &HashMap<String, String>) -> CPUStat {
    let stat = table(files, "cpu.stat");
    CPUStat {
        usage_usec: stat("usage_usec"),
        user_usec: stat("user_usec"),
        system_usec: stat("system_usec"),
        nr_periods: stat("nr_periods"),
        nr_throttled: stat("nr_throttled"),
        throttled_usec: stat("throttled_usec"),
        nr_bursts: stat("nr_bursts"),
        burst_usec: stat("burst_usec"),
        ..Default::default()
    }
}

fn memory(files: &HashMap<String, String>) -> MemoryStat {
    let stat = table(files, "memory.stat");
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault_anon")
            .saturating_add(stat("workingset_refault_file")),
        workingset_activate: stat("workingset_activate_anon")
            .saturating_add(stat("workingset_activate_file")),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: number(files, "memory.current"),
        usage_limit: number(files, "memory.max"),
        max_usage: number(files, "memory.peak"),
        swap_usage: number(files, "memory.swap.current"),
        swap_limit: number(files, "memory.swap.max"),
        swap_max_usage: number(files, "memory.swap.peak"),
        ..Default::default()
    }
}

fn memory_events(files: &HashMap<String, String>) -> MemoryEvents {
    let stat = table(files, "memory.events");
    MemoryEvents {
        low: stat("low"),
        high: stat("high"),
        max: stat("max"),
        oom: stat("oom"),
        oom_kill: stat("oom_kill"),
        oom_group_kill: stat("oom_group_kill"),
        ..Default::default()
    }
}

/// `io.stat`: a line a device, `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=…`.
fn io(files: &HashMap<String, String>) -> IOStat {
    let usage = text(files, "io.stat")
        .lines()
        .take(MAX_DEVICES)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut entry = IOEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..Default::default()
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => entry.rbytes = value,
                    "wbytes" => entry.wbytes = value,
                    "rios" => entry.rios = value,
                    "wios" => entry.wios = value,
                    _ => {}
                }
            }
            Some(entry)
        });
    IOStat {
        usage: usage.collect(),
        ..Default::default()
    }
}

fn text<'a>(files: &'a HashMap<String, String>, name: &str) -> &'a str {
    files.get(name).map_or("", String::as_str)
}

/// A file of one number; `max` is the largest one.
fn number(files: &HashMap<String, String>, name: &str) -> u64 {
    match text(files, name).trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

/// A file of lines `key value`.
fn table<'a>(files: &'a HashMap<String, String>, name: &str) -> impl Fn(&str) -> u64 + 'a {
    let entries: HashMap<&str, u64> = text(files, name)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key, value.trim().parse().ok()?)))
        .collect();
    move |key| entries.get(key).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries
            .iter()
            .map(|&(name, text)| (name.to_owned(), text.to_owned()))
            .collect()
    }

    #[test]
    fn each_file_fills_its_fields() {
        let metrics = metrics(&files(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 70\nsystem_usec 7\n"),
            ("memory.current", "4096\n"),
            (
                "memory.stat",
                "anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\n",
            ),
            ("memory.events", "oom 2\noom_kill 1\n"),
            (
                "io.stat",
                "254:0 rbytes=512 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
            ),
        ]));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.system_usec), (77, 7));
        assert_eq!((metrics.memory.usage, metrics.memory.file), (4096, 2));
        assert_eq!(metrics.memory.workingset_refault, 7);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        let device = &metrics.io.usage[0];
        assert_eq!((device.major, device.rbytes, device.rios), (254, 512, 1));
    }

    #[test]
    fn missing_files_and_garbage_count_as_zero() {
        let garbage = files(&[
            ("pids.current", "-1"),
            ("cpu.stat", "usage_usec\nuser_usec x\n\u{0}"),
            ("io.stat", ":\n8 rbytes\n8:x\n254:0 rbytes"),
            ("memory.stat", "anon 99999999999999999999"),
        ]);
        for files in [HashMap::new(), garbage] {
            let metrics = metrics(&files);
            assert_eq!(
                (
                    metrics.pids.current,
                    metrics.cpu.user_usec,
                    metrics.memory.anon
                ),
                (0, 0, 0)
            );
        }
    }
}
