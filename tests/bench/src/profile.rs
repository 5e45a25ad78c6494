//! Where the time of a machine with one processor goes, as KVM's trace events tell.
//!
//! Between an entry (`kvm_entry`) and the next exit (`kvm_exit`) the guest runs. What follows is KVM's, by the
//! exit's reason, and the VMM's from where KVM returns to it (`kvm_userspace_exit`) until the next entry.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::measures::Figures;

/// An ftrace instance of its own, so that whoever else traces is left alone.
const INSTANCE: &str = "/sys/kernel/tracing/instances/hull-bench";
const EVENTS: [&str; 3] = ["kvm_entry", "kvm_exit", "kvm_userspace_exit"];
/// What is written between the events where the measured time begins and ends.
const BEGIN: &str = "begin";
const END: &str = "end";

/// KVM's events from [`Trace::begin`] to [`Trace::end`].
pub(crate) struct Trace(());

impl Trace {
    /// Begins to trace.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        fs::create_dir(INSTANCE)
            .with_context(|| format!("make {INSTANCE}; is tracefs mounted there?"))?;
        let this = Self(());
        // Events of several processors are in order by a clock that they share.
        set("trace_clock", "mono")?;
        set("buffer_size_kb", "16384")?;
        for event in EVENTS {
            set(&format!("events/kvm/{event}/enable"), "1")?;
        }
        set("trace_marker", BEGIN)?;
        Ok(this)
    }

    /// Ends, and tells where the time went, in milliseconds.
    pub(crate) fn end(self) -> anyhow::Result<Figures> {
        set("trace_marker", END)?;
        set("tracing_on", "0")?;
        let trace =
            fs::read_to_string(Path::new(INSTANCE).join("trace")).context("read the trace")?;
        split(&trace)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        for event in EVENTS {
            let _ = set(&format!("events/kvm/{event}/enable"), "0");
        }
        let _ = fs::remove_dir(INSTANCE);
    }
}

fn set(file: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new(INSTANCE).join(file);
    fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

/// What the time since the last event went to. The keys are those of the measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Guest,
    Fault,
    Halted,
    Vmm,
    Rest,
}

impl Place {
    const ALL: [Self; 6] = [
        Self::Before,
        Self::Guest,
        Self::Fault,
        Self::Halted,
        Self::Vmm,
        Self::Rest,
    ];

    const fn key(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Guest => "guest",
            Self::Fault => "faults",
            Self::Halted => "halted",
            Self::Vmm => "vmm",
            Self::Rest => "rest",
        }
    }

    /// Where an event leads to; `None` for those that change nothing.
    fn after(event: &str, details: &str) -> Option<Self> {
        let reason = |words: &[&str]| {
            let mut found = details.split([' ', ',', '(', ')']);
            found.any(|word| words.contains(&word))
        };
        match event {
            "kvm_entry" => Some(Self::Guest),
            "kvm_userspace_exit" => Some(Self::Vmm),
            // The names are AMD's, Intel's and Arm's.
            "kvm_exit" if reason(&["npf", "EPT_VIOLATION", "DABT_LOW", "IABT_LOW"]) => {
                Some(Self::Fault)
            }
            "kvm_exit" if reason(&["hlt", "HLT", "WFx"]) => Some(Self::Halted),
            "kvm_exit" => Some(Self::Rest),
            _ => None,
        }
    }
}

/// Adds up a trace as ftrace prints it: `vcpu0-812 [001] d.... 12.345678: kvm_exit: vcpu 0 reason npf ...`.
fn split(trace: &str) -> anyhow::Result<Figures> {
    let mut sums = Place::ALL.map(|place| (place, 0.0));
    let mut place = Place::Before;
    let mut since = None;
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, event, details)) = parts(line) else {
            anyhow::ensure!(
                !line.contains("LOST"),
                "the trace's buffer is too small: {line}"
            );
            continue;
        };
        let time: f64 = (head.rsplit(' ').next().unwrap_or_default().parse())
            .with_context(|| format!("read the time of {line:?}"))?;
        let is_mark = event == "tracing_mark_write";
        if is_mark && details == BEGIN {
            since = Some(time);
        }
        let Some(last) = since else { continue };
        for (_, sum) in sums.iter_mut().filter(|(it, _)| *it == place) {
            *sum += (time - last) * 1e3;
        }
        if is_mark && details == END {
            let figure = |(place, sum): (Place, f64)| (place.key().to_owned(), sum);
            return Ok(sums.map(figure).into());
        }
        since = Some(time);
        place = Place::after(event, details).unwrap_or(place);
    }
    anyhow::bail!("the trace has no beginning or no end")
}

/// What is before the event's name, the name, and what is after it.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (head, rest) = line.split_once(": ")?;
    let (event, details) = rest.split_once(": ")?;
    Some((head, event, details))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop
#
      hull-bench-700   [000] .....   10.000000: tracing_mark_write: begin
           vcpu0-812   [001] d....   10.020000: kvm_entry: vcpu 0, rip 0x100000
           vcpu0-812   [001] d....   10.050000: kvm_exit: vcpu 0 reason npf rip 0x1 info1 0x0
           vcpu0-812   [001] d....   10.055000: kvm_entry: vcpu 0, rip 0x1
           vcpu0-812   [001] d....   10.056000: kvm_exit: vcpu 0 reason io rip 0x2 info1 0x0
           vcpu0-812   [001] .....   10.058000: kvm_userspace_exit: reason KVM_EXIT_IO (2)
           vcpu0-812   [000] d....   10.061000: kvm_entry: vcpu 0, rip 0x2
           vcpu0-812   [000] d....   10.062000: kvm_exit: vcpu 0 reason hlt rip 0x3 info1 0x0
      hull-bench-700   [001] .....   10.070000: tracing_mark_write: end
";

    #[test]
    fn all_of_the_time_has_gone_somewhere() {
        let figures = split(TRACE).unwrap();
        let told: Vec<_> = (figures.iter())
            .map(|(key, sum)| format!("{key} {sum:.0}"))
            .collect();
        let expected = [
            "before 20",
            "guest 32",
            "faults 5",
            "halted 8",
            "vmm 3",
            "rest 2",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_trace_that_lost_events_is_an_error() {
        let lost = TRACE.replace(
            "           vcpu0-812   [001] d....   10.050000",
            "CPU:1 [LOST 12 EVENTS]\n           vcpu0-812   [001] d....   10.050000",
        );
        assert!(split(&lost).unwrap_err().to_string().contains("too small"));
        assert!(split(&TRACE.replace(": end", ": other")).is_err());
    }
}
