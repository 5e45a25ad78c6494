//! The weights that a configuration asks for, in cgroup version 2's terms (cgroup-v2.rst, "CPU", "IO").

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources};

/// How much of the host a group is to have beside others; `None` leaves what there is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weights {
    /// Processors: 1 to 10000.
    pub(super) cpu: Option<u64>,
    /// Disks, as the configuration has it: 10 to 1000, which is also the scale of the BFQ scheduler.
    bfq: Option<u16>,
}

impl Weights {
    pub(super) fn of(resources: &LinuxResources) -> Self {
        let shares = resources.cpu().as_ref().and_then(LinuxCpu::shares);
        let io = resources.block_io().as_ref();
        let io = io.and_then(LinuxBlockIo::weight);
        Self {
            cpu: shares.filter(|&shares| shares > 0).map(cpu_weight),
            bfq: io.filter(|&weight| weight > 0),
        }
    }

    /// Disks: 1 to 10000.
    pub(super) fn io(&self) -> Option<u64> {
        self.bfq.map(io_weight)
    }

    /// The files of a group that these mean, with what is to be written.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, String)> {
        // Each is for one of the kernel's ways to share a disk; a kernel may have neither.
        let weights = [
            ("cpu.weight", self.cpu),
            ("io.bfq.weight", self.bfq.map(u64::from)),
            ("io.weight", self.io()),
        ];
        let asked = weights.into_iter();
        asked.filter_map(|(file, weight)| Some((file, weight?.to_string())))
    }
}

/// `cpu.weight` of the shares of cgroup version 1, 2 to 262144: as runc has it from 1.3.2 on, crun from 1.23 on, and
/// libcontainer in the guest. The logarithms are a parabola through the least, the defaults (1024 is 100), and the
/// most.
fn cpu_weight(shares: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "at most 18 bits of 53")]
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to 10000"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// `io.weight` of a weight of cgroup version 1, 10 to 1000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weights_are_those_of_version_2() {
        let told = |json| -> Vec<_> {
            let weights = Weights::of(&serde_json::from_value(json).unwrap());
            weights.files().collect()
        };
        let weights = [
            (1, "1"),
            (2, "1"),
            (3, "2"),
            (512, "59"),
            (1024, "100"),
            (2000, "170"),
            (22_000, "1204"),
            (262_144, "10000"),
            (u64::MAX, "10000"),
        ];
        for (shares, weight) in weights {
            let asked = told(json!({ "cpu": { "shares": shares } }));
            assert_eq!(asked, [("cpu.weight", weight.to_owned())]);
        }
        for (weight, version_2) in [(10, "1"), (500, "4950"), (1000, "10000")] {
            let asked = told(json!({ "blockIO": { "weight": weight } }));
            let both = [
                ("io.bfq.weight", weight.to_string()),
                ("io.weight", version_2.to_owned()),
            ];
            assert_eq!(asked, both);
        }
        let none = json!({ "cpu": { "shares": 0, "quota": 1000 }, "blockIO": { "weight": 0 } });
        assert_eq!(told(none), []);
    }
}
