//! Where the time of a machine with one processor goes, as KVM's trace events tell.
//!
//! Between an entry (`kvm_entry`) and the next exit (`kvm_exit`) the guest runs. What follows is KVM's, by the
//! exit's reason, and the VMM's from where KVM returns to it (`kvm_userspace_exit`) until the next entry. What
//! a driver does with an interrupt's two registers is told apart, whoever serves it.

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
        set("buffer_size_kb", "65536")?;
        for event in EVENTS {
            set(&format!("events/kvm/{event}/enable"), "1")?;
        }
        set("trace_marker", BEGIN)?;
        Ok(this)
    }

    /// Ends, and tells where the time went.
    pub(crate) fn end(self) -> anyhow::Result<Profile> {
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

/// Where the time went.
pub(crate) struct Profile {
    /// In milliseconds.
    pub(crate) places: Figures,
    /// How many interrupts a driver acknowledged.
    pub(crate) acknowledged: u32,
}

/// What the time since the last event went to. The keys are those of the measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Guest,
    Interrupt,
    Fault,
    Halted,
    Vmm,
    Rest,
}

/// Where virtio's devices are, as physical addresses: Hull's (`hull-vmm`, arch/x86_64/layout.rs), and QEMU's
/// microvm machine's (hw/i386/microvm.c).
const DEVICES: [std::ops::Range<u64>; 2] = [0xd000_0000..0xd010_0000, 0xfeb0_0000..0xfeb0_3000];

/// Registers of an interrupt (virtio 1.3 §4.2.2), in either's devices, which lie at multiples of [`SPACING`].
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const SPACING: u64 = 0x200;

impl Place {
    const ALL: [Self; 7] = [
        Self::Before,
        Self::Guest,
        Self::Interrupt,
        Self::Fault,
        Self::Halted,
        Self::Vmm,
        Self::Rest,
    ];

    const fn key(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Guest => "guest",
            Self::Interrupt => "interrupts",
            Self::Fault => "faults",
            Self::Halted => "halted",
            Self::Vmm => "vmm",
            Self::Rest => "rest",
        }
    }

    /// Where an event leads to from here.
    fn after(self, event: &str, details: &str) -> Self {
        let reason = |words: &[&str]| {
            let mut found = details.split([' ', ',', '(', ')']);
            found.any(|word| words.contains(&word))
        };
        match event {
            "kvm_entry" => Self::Guest,
            "kvm_userspace_exit" if self == Self::Interrupt => self,
            "kvm_userspace_exit" => Self::Vmm,
            "kvm_exit" if interrupt_register(details).is_some() => Self::Interrupt,
            // The names are AMD's, Intel's and Arm's.
            "kvm_exit" if reason(&["npf", "EPT_VIOLATION", "DABT_LOW", "IABT_LOW"]) => Self::Fault,
            "kvm_exit" if reason(&["hlt", "HLT", "WFx"]) => Self::Halted,
            "kvm_exit" => Self::Rest,
            _ => self,
        }
    }
}

/// The interrupt's register whose load or store has led to an exit. AMD's processors say where it was.
fn interrupt_register(details: &str) -> Option<u64> {
    let mut words = (details.split_whitespace()).skip_while(|word| *word != "info2");
    let address = u64::from_str_radix(words.nth(1)?.strip_prefix("0x")?, 16).ok()?;
    let register = address % SPACING;
    let is_one = DEVICES.iter().any(|range| range.contains(&address))
        && [INTERRUPT_STATUS, INTERRUPT_ACK].contains(&register);
    is_one.then_some(register)
}

/// Adds up a trace as ftrace prints it: `vcpu0-812 [001] d.... 12.345678: kvm_exit: vcpu 0 reason npf ...`.
fn split(trace: &str) -> anyhow::Result<Profile> {
    let mut sums = Place::ALL.map(|place| (place, 0.0));
    let mut place = Place::Before;
    let mut since = None;
    let mut acknowledged = 0;
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
            return Ok(Profile {
                places: sums.map(figure).into(),
                acknowledged,
            });
        }
        since = Some(time);
        if event == "kvm_exit" && interrupt_register(details) == Some(INTERRUPT_ACK) {
            acknowledged += 1;
        }
        place = place.after(event, details);
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
           vcpu0-812   [000] d....   10.070000: kvm_entry: vcpu 0, rip 0x3
           vcpu0-812   [000] d....   10.071000: kvm_exit: vcpu 0 reason npf rip 0x4 info1 0x4 info2 0xfeb00264
           vcpu0-812   [000] .....   10.072000: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
           vcpu0-812   [000] d....   10.075000: kvm_entry: vcpu 0, rip 0x5
           vcpu0-812   [000] d....   10.076000: kvm_exit: vcpu 0 reason npf rip 0x6 info1 0x4 info2 0x00000000d0001050
      hull-bench-700   [001] .....   10.079000: tracing_mark_write: end
";

    #[test]
    fn all_of_the_time_has_gone_somewhere() {
        let profile = split(TRACE).unwrap();
        let told: Vec<_> = (profile.places.iter())
            .map(|(key, sum)| format!("{key} {sum:.0}"))
            .collect();
        let expected = [
            "before 20",
            "guest 34",
            "interrupts 4",
            "faults 8",
            "halted 8",
            "vmm 3",
            "rest 2",
        ];
        assert_eq!(told, expected);
        assert_eq!(profile.acknowledged, 1);
    }

    #[test]
    fn a_trace_that_lost_events_is_an_error() {
        let lost = TRACE.replace(
            "           vcpu0-812   [001] d....   10.050000",
            "CPU:1 [LOST 12 EVENTS]\n           vcpu0-812   [001] d....   10.050000",
        );
        assert!(
            split(&lost)
                .err()
                .unwrap()
                .to_string()
                .contains("too small")
        );
        assert!(split(&TRACE.replace(": end", ": other")).is_err());
    }
}
