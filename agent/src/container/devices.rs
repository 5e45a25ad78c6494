//! `linux.resources.devices` → a BPF program that the kernel asks before a device is used. Pure.
//!
//! cgroup v2 has no device controller but programs of type `BPF_PROG_TYPE_CGROUP_DEVICE`
//! (cgroup-v2.rst, "Device controller"). Ours tries the rules from the last to the first, as later
//! ones override earlier ones (oci runtime-spec config-linux.md "Allowed Device list"), and refuses
//! what no rule matches. A request is granted by one rule that covers all of it.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};

use crate::bpf::{
    AND, EXIT, Instruction, JUMP_EQUAL, JUMP_NOT_EQUAL, LOAD_WORD, MOVE, MOVE_REGISTER,
    SHIFT_RIGHT, instruction,
};

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Only block and character devices are controlled.
    #[error("device rule for type {0:?}: only a, b, c and u are devices")]
    Type(LinuxDeviceType),
    /// A letter other than r, w and m.
    #[error("device rule with access {0:?}: only r, w and m exist")]
    Access(String),
    /// Not a device number.
    #[error("device rule with number {0}")]
    Number(i64),
}

/// `bpf_cgroup_dev_ctx.access_type`: the device's type below …
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
/// … and the access in the upper half.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// Registers: the result, the context (then scratch), and the parts of the request.
const R_RESULT: u8 = 0;
const R_CONTEXT: u8 = 1;
const R_TYPE: u8 = 2;
const R_ACCESS: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;

/// What every container may use, whatever the rules say, as with runc: making nodes, and the
/// devices that its /dev has.
const ALWAYS: [Rule; 10] = [
    Rule::always(BLOCK, None, None, MKNOD),
    Rule::always(CHARACTER, None, None, MKNOD),
    Rule::always(CHARACTER, Some(1), Some(3), ALL), // null
    Rule::always(CHARACTER, Some(1), Some(5), ALL), // zero
    Rule::always(CHARACTER, Some(1), Some(7), ALL), // full
    Rule::always(CHARACTER, Some(1), Some(8), ALL), // random
    Rule::always(CHARACTER, Some(1), Some(9), ALL), // urandom
    Rule::always(CHARACTER, Some(5), Some(0), ALL), // tty
    Rule::always(CHARACTER, Some(5), Some(2), ALL), // ptmx
    Rule::always(CHARACTER, Some(136), None, ALL),  // pts/*
];

#[derive(Clone, Copy)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    const fn always(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    fn from_oci(rule: &LinuxDeviceCgroup) -> Result<Self, DeviceError> {
        let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Err(DeviceError::Type(LinuxDeviceType::P)),
        };
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access: access(rule.access().as_deref().unwrap_or("rwm"))?,
        })
    }

    /// The instructions that decide if the rule matches and go on behind them if not.
    fn compile(self) -> Vec<Instruction> {
        // What has to hold, as jumps to the end where it does not; their offsets come last.
        let mut code = Vec::new();
        if let Some(kind) = self.kind {
            code.push((JUMP_NOT_EQUAL, R_TYPE, kind));
        }
        if let Some(major) = self.major {
            code.push((JUMP_NOT_EQUAL, R_MAJOR, major));
        }
        if let Some(minor) = self.minor {
            code.push((JUMP_NOT_EQUAL, R_MINOR, minor));
        }
        code.push((MOVE_REGISTER, R_CONTEXT, 0));
        if self.allow {
            // Nothing may be asked for that the rule does not grant …
            code.push((AND, R_CONTEXT, ALL & !self.access));
            code.push((JUMP_NOT_EQUAL, R_CONTEXT, 0));
        } else {
            // … and one part that is refused is enough to refuse.
            code.push((AND, R_CONTEXT, self.access));
            code.push((JUMP_EQUAL, R_CONTEXT, 0));
        }
        code.push((MOVE, R_RESULT, i32::from(self.allow)));
        code.push((EXIT, 0, 0));

        let length = code.len();
        let place = |(index, (operation, register, value))| {
            let is_jump = matches!(operation, JUMP_EQUAL | JUMP_NOT_EQUAL);
            let to_end = if is_jump { length - index - 1 } else { 0 };
            let offset = u16::try_from(to_end).expect("a rule has at most 8 instructions");
            let source = if operation == MOVE_REGISTER {
                R_ACCESS
            } else {
                0
            };
            instruction(operation, register, source, offset, value)
        };
        code.into_iter().enumerate().map(place).collect()
    }
}

/// A block device of the configuration that is a disk of this machine: where it is in the container,
/// and which one it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its path.
    pub path: PathBuf,
    /// Major and minor.
    pub number: (i64, i64),
}

/// Gives the disks their numbers of this machine, in place of the host's, and the rules for them too.
pub fn renumber(linux: &mut Linux, disks: &[Disk]) {
    if disks.is_empty() {
        return;
    }
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for device in &mut devices {
        let Some(disk) = disks.iter().find(|disk| disk.path == *device.path()) else {
            continue;
        };
        let (major, minor) = disk.number;
        let theirs = (Some(device.major()), Some(device.minor()));
        for rule in &mut rules {
            let is_for_it =
                rule.typ() == Some(LinuxDeviceType::B) && (rule.major(), rule.minor()) == theirs;
            if is_for_it {
                rule.set_major(Some(major)).set_minor(Some(minor));
            }
        }
        device.set_major(major).set_minor(minor);
    }
    resources.set_devices(Some(rules));
    linux
        .set_devices(Some(devices))
        .set_resources(Some(resources));
}

/// Compiles the rules of a configuration.
///
/// # Errors
/// All of `DeviceError`.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>, DeviceError> {
    let own = rules.iter().map(Rule::from_oci);
    let rules = own
        .chain(ALWAYS.into_iter().map(Ok))
        .collect::<Result<Vec<_>, _>>()?;
    let mut program = vec![
        instruction(LOAD_WORD, R_TYPE, R_CONTEXT, 0, 0),
        instruction(AND, R_TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, R_ACCESS, R_CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, R_ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, R_MAJOR, R_CONTEXT, 4, 0),
        instruction(LOAD_WORD, R_MINOR, R_CONTEXT, 8, 0),
    ];
    program.extend(rules.into_iter().rev().flat_map(Rule::compile));
    program.push(instruction(MOVE, R_RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    Ok(program)
}

/// -1 stands for every number, as in Docker's configurations.
fn number(number: Option<i64>) -> Result<Option<i32>, DeviceError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => match i32::try_from(number) {
            Ok(small @ 0..) => Ok(Some(small)),
            _ => Err(DeviceError::Number(number)),
        },
    }
}

fn access(letters: &str) -> Result<i32, DeviceError> {
    letters.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => Err(DeviceError::Access(letters.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter would answer. Values stay far below 2^31, so that widths and
    /// signs do not matter.
    fn ask(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0; 6];
        let mut next = 0;
        loop {
            let [operation, places, o0, _, v0, v1, v2, v3] = program[next].to_le_bytes();
            let (to, from) = (usize::from(places & 15), usize::from(places >> 4));
            let (offset, value) = (usize::from(o0), i32::from_le_bytes([v0, v1, v2, v3]));
            next += 1;
            match operation {
                LOAD_WORD => registers[to] = context[offset / 4],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_EQUAL if registers[to] == value => next += offset,
                JUMP_NOT_EQUAL if registers[to] != value => next += offset,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn without_rules_only_the_usual_devices_are_usable() {
        let program = program(&[]).unwrap();

        assert!(ask(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(ask(&program, CHARACTER, READ, 136, 77));
        assert!(ask(&program, BLOCK, MKNOD, 254, 0));
        assert!(!ask(&program, BLOCK, READ, 254, 0));
        assert!(!ask(&program, CHARACTER, READ, 1, 1));
    }

    #[test]
    fn a_device_that_was_given_is_usable_as_far_as_it_was() {
        let rules = rules(
            r#"[{"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": 254, "minor": 16, "access": "r"}]"#,
        );

        let program = program(&rules).unwrap();

        assert!(ask(&program, BLOCK, READ, 254, 16));
        assert!(!ask(&program, BLOCK, READ | WRITE, 254, 16));
        assert!(!ask(&program, BLOCK, READ, 254, 0));
        assert!(!ask(&program, CHARACTER, READ, 254, 16));
    }

    #[test]
    fn a_disk_and_its_rules_get_the_numbers_of_this_machine() {
        let linux = r#"{
            "devices": [{"path": "/dev/data", "type": "b", "major": 8, "minor": 16}],
            "resources": {"devices": [
                {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "r"},
                {"allow": true, "type": "c", "major": 8, "minor": 16, "access": "r"}]}}"#;
        let mut linux: Linux = serde_json::from_str(linux).unwrap();
        let disk = Disk {
            path: "/dev/data".into(),
            number: (254, 16),
        };

        renumber(&mut linux, &[disk]);

        let device = &linux.devices().as_ref().unwrap()[0];
        assert_eq!((device.major(), device.minor()), (254, 16));
        let resources = linux.resources().clone().unwrap();
        let rules = resources.devices().as_ref().unwrap();
        assert_eq!(rules[0].major(), Some(254));
        assert_eq!(rules[1].major(), Some(8));
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let program = program(&rules(r#"[{"allow": true, "access": "rwm"}]"#)).unwrap();

        assert!(ask(&program, BLOCK, READ | WRITE | MKNOD, 254, 0));
        assert!(ask(&program, CHARACTER, READ, 10, 229));
    }

    #[test]
    fn a_later_rule_overrides_an_earlier_one() {
        let rules = rules(
            r#"[{"allow": true, "access": "rwm"},
                {"allow": false, "type": "c", "major": 10, "minor": -1, "access": "w"}]"#,
        );

        let program = program(&rules).unwrap();

        assert!(!ask(&program, CHARACTER, READ | WRITE, 10, 229));
        assert!(ask(&program, CHARACTER, READ, 10, 229));
    }

    #[test]
    fn a_rule_that_means_nothing_is_refused() {
        let refused = |json| program(&rules(json)).unwrap_err().to_string();

        assert!(refused(r#"[{"allow": true, "access": "rx"}]"#).contains("\"rx\""));
        assert!(refused(r#"[{"allow": true, "type": "p"}]"#).contains('P'));
        assert!(refused(r#"[{"allow": true, "major": -7}]"#).contains("-7"));
    }
}
