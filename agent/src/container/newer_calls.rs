//! System calls that are newer than a seccomp profile. Pure.
//!
//! A profile that answers what it does not name with an error answers them with that error, mostly
//! EPERM; a program which tries the newest call first and an older one if there is none (ENOSYS), as
//! C libraries do, gives up then. So what has a higher number than all that the profile names does not
//! exist, as with runc.
//!
//! That takes a filter of its own. Of filters whose actions are the same the kernel follows the one
//! loaded last (Documentation/userspace-api/seccomp_filter.rst, "Return values"), so it is loaded
//! after the profile, and only under one which lets that happen.

use std::ops::Range;

use libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

/// The system calls of one kind of programs.
struct Abi {
    arch: Arch,
    /// `AUDIT_ARCH_…` (linux/audit.h), by which the kernel tells them apart.
    audit: u32,
    /// Those that may be system calls; what is outside is left to the profile.
    numbers: Range<u32>,
}

/// What tells those of x32 from those of x86-64 (arch/x86/include/uapi/asm/unistd.h).
const X32_BIT: u32 = 0x4000_0000;
/// No system call has a negative number.
const END: u32 = 0x8000_0000;
/// Where those that Arm's alone begin (arch/arm/include/uapi/asm/unistd.h).
const ARM_PRIVATE: u32 = 0x000f_0000;

/// All that a guest's kernel may run.
const ABIS: [Abi; 5] = [
    Abi {
        arch: Arch::ScmpArchX86_64,
        audit: 0xc000_003e,
        numbers: 0..X32_BIT,
    },
    Abi {
        arch: Arch::ScmpArchX32,
        audit: 0xc000_003e,
        numbers: X32_BIT..END,
    },
    Abi {
        arch: Arch::ScmpArchX86,
        audit: 0x4000_0003,
        numbers: 0..END,
    },
    Abi {
        arch: Arch::ScmpArchAarch64,
        audit: 0xc000_00b7,
        numbers: 0..END,
    },
    Abi {
        arch: Arch::ScmpArchArm,
        audit: 0x4000_0028,
        numbers: 0..ARM_PRIVATE,
    },
];

/// Every profile holds for it, whether it is named or not.
const NATIVE: Arch = if cfg!(target_arch = "aarch64") {
    Arch::ScmpArchAarch64
} else {
    Arch::ScmpArchX86_64
};

/// The filter to load after `profile`, if it needs one; `number` is that of a system call, if an
/// architecture has it.
pub fn filter(
    profile: &LinuxSeccomp,
    number: impl Fn(&str, Arch) -> Option<u32>,
) -> Option<Vec<sock_filter>> {
    let errno = profile
        .default_errno_ret()
        .map_or(Ok(libc::EPERM), i32::try_from);
    let is_error = profile.default_action() == LinuxSeccompAction::ScmpActErrno;
    if !is_error || errno == Ok(libc::ENOSYS) || !lets_load(profile) {
        return None;
    }
    let mut filter = vec![load(ARCH)];
    for abi in ABIS.iter().filter(|abi| holds_for(profile, abi.arch)) {
        let rules = profile.syscalls().iter().flatten();
        let names = rules.flat_map(LinuxSyscall::names);
        let numbers = names.filter_map(|name| number(name, abi.arch));
        let last = numbers.filter(|number| abi.numbers.contains(number)).max();
        if let Some(last) = last {
            filter.extend([
                jump(libc::BPF_JEQ, abi.audit, 0, 5),
                load(NUMBER),
                jump(libc::BPF_JGE, abi.numbers.end, 2, 0),
                jump(libc::BPF_JGT, last, 0, 1),
                answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
                load(ARCH),
            ]);
        }
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    Some(filter)
}

/// Whether `prctl(2)`, by which a filter is loaded, is still there under the profile.
fn lets_load(profile: &LinuxSeccomp) -> bool {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog};
    let rules = profile.syscalls().iter().flatten();
    let mut of_prctl = rules
        .filter(|rule| rule.names().iter().any(|name| name == "prctl"))
        .map(|rule| {
            matches!(rule.action(), ScmpActAllow | ScmpActLog)
                && rule.args().as_ref().is_none_or(Vec::is_empty)
        })
        .peekable();
    of_prctl.peek().is_some() && of_prctl.all(|lets| lets)
}

fn holds_for(profile: &LinuxSeccomp, arch: Arch) -> bool {
    let named = profile.architectures().as_deref().unwrap_or_default();
    arch == NATIVE || named.contains(&arch)
}

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, (0, 0))
}

/// Passes over `yes` or `no` instructions.
fn jump(when: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | when | libc::BPF_K, value, (yes, no))
}

fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, (0, 0))
}

fn instruction(code: u32, k: u32, (jt, jf): (u8, u8)) -> sock_filter {
    let code = u16::try_from(code).expect("codes have eight bits");
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// System calls of three times; x32 has the second alone, Arm one that is its own.
    fn number(name: &str, arch: Arch) -> Option<u32> {
        let number = match name {
            "old" => 10,
            "new" => 400,
            "own" if arch == Arch::ScmpArchArm => ARM_PRIVATE + 2,
            "prctl" => 157,
            _ => return None,
        };
        Some(match arch {
            Arch::ScmpArchX32 => X32_BIT | number,
            _ => number,
        })
    }

    fn profile(default: &str, names: &[&str]) -> LinuxSeccomp {
        let default: serde_json::Value = serde_json::from_str(default).unwrap();
        let mut profile = serde_json::json!({
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }],
        });
        for (key, value) in default.as_object().unwrap() {
            profile[key] = value.clone();
        }
        serde_json::from_value(profile).unwrap()
    }

    /// What the kernel would have of a filter (linux/filter.h), as far as this one goes.
    fn run(filter: &[sock_filter], audit: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let it = filter[at];
            at += 1;
            let code = u32::from(it.code);
            let holds = match code & 0xf0 {
                libc::BPF_JEQ => value == it.k,
                libc::BPF_JGE => value >= it.k,
                _ => value > it.k,
            };
            match code & 0x07 {
                libc::BPF_RET => return it.k,
                libc::BPF_JMP => at += usize::from(if holds { it.jt } else { it.jf }),
                _ => value = if it.k == ARCH { audit } else { number },
            }
        }
    }

    #[test]
    fn what_is_newer_than_the_profile_does_not_exist() {
        const EPERM: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#;
        let profile = profile(EPERM, &["old", "new", "own", "prctl", "of the future"]);
        let filter = filter(&profile, number).unwrap();
        let [x86_64, x32, i386, aarch64, arm] = &ABIS;

        for (abi, number, is_newer) in [
            (x86_64, 400, false),
            (x86_64, 401, true),
            (x86_64, u32::MAX, false),
            (x32, X32_BIT | 400, false),
            (x32, X32_BIT | 401, true),
            // The profile does not hold for it: libseccomp has it killed.
            (i386, 401, false),
            (aarch64, 1000, true),
            (arm, 401, true),
            (arm, ARM_PRIVATE + 5, false),
        ] {
            let action = run(&filter, abi.audit, number);
            let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
            let expected = if is_newer {
                enosys
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            assert_eq!(action, expected, "{:?} {number:#x}", abi.arch);
        }
    }

    #[test]
    fn other_profiles_are_left_alone() {
        for (default, names) in [
            (r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#, ["old", "prctl"]),
            (r#"{"defaultAction": "SCMP_ACT_KILL"}"#, ["old", "prctl"]),
            (
                r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38}"#,
                ["old", "prctl"],
            ),
            // It could not be loaded under this one.
            (r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#, ["old", "new"]),
        ] {
            assert!(
                filter(&profile(default, &names), number).is_none(),
                "{default}"
            );
        }
    }
}
