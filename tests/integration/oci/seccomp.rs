//! config-linux.md: seccomp. Busybox's applets make the system calls.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use super::{demand, fact, limit, section};

fn rule(names: &[&str], action: &str) -> Value {
    json!({ "names": names, "action": action })
}

fn when(name: &str, index: u32, op: &str, value: u64) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
            "args": [{ "index": index, "op": op, "value": value }] })
}

#[test]
fn seccomp() {
    section("config-linux.md#configLinuxSeccomp", |cases| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [
                rule(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO"),
                { "names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
                rule(&["sync"], "SCMP_ACT_KILL_PROCESS"),
                rule(&["sethostname"], "SCMP_ACT_TRAP"),
                rule(&["chroot"], "SCMP_ACT_KILL"),
                rule(&["pivot_root"], "SCMP_ACT_KILL_THREAD"),
                rule(&["symlink", "symlinkat"], "SCMP_ACT_LOG"),
                { "names": ["link", "linkat"], "action": "SCMP_ACT_TRACE", "errnoRet": 1 },
                rule(&["a_system_call_of_the_future"], "SCMP_ACT_ERRNO"),
                when("chmod", 1, "SCMP_CMP_EQ", 0o701),
                when("chmod", 1, "SCMP_CMP_LT", 0o10),
                when("chmod", 1, "SCMP_CMP_GT", 0o5000),
                { "names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
                  "args": [{ "index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 0o7000, "valueTwo": 0o1000 }] },
                when("ftruncate", 1, "SCMP_CMP_GE", 4096),
                when("chown", 1, "SCMP_CMP_NE", 5),
                when("lchown", 1, "SCMP_CMP_LE", 5),
            ],
        });
        cases.inside(
            |spec| {
                spec["linux"]["seccomp"] = profile.clone();
                for set in ["bounding", "permitted", "effective"] {
                    spec["process"]["capabilities"][set] = json!(["CAP_CHOWN", "CAP_SYS_CHROOT"]);
                }
            },
            &[
                fact("a filter is loaded", "grep Seccomp: /proc/self/status", "Seccomp:\t2"),
                fact("SCMP_ACT_ERRNO fails with EPERM", "mkdir /tmp/d 2>&1 | grep -o 'not permitted'", "not permitted"),
                fact("errnoRet is the error", "rmdir /tmp 2>&1 | grep -o 'not implemented'", "not implemented"),
                fact("SCMP_ACT_KILL_PROCESS kills", "sh -c sync; echo $?", "Bad system call\n159"),
                fact("SCMP_ACT_TRAP sends SIGSYS", "sh -c 'hostname x'; echo $?", "Bad system call\n159"),
                fact("SCMP_ACT_KILL kills", "sh -c 'chroot / true'; echo $?", "Bad system call\n159"),
                fact("SCMP_ACT_KILL_THREAD kills", "sh -c 'pivot_root / /'; echo $?", "Bad system call\n159"),
                fact("SCMP_ACT_LOG allows", "ln -s a /tmp/link && readlink /tmp/link", "a"),
                fact("SCMP_ACT_TRACE without a tracer fails with ENOSYS", "ln /bin/busybox /bin/hard 2>&1 | grep -o 'not implemented'", "not implemented"),
                fact("a system call that the kernel does not have is no error", "echo it runs", "it runs"),
                fact("SCMP_CMP_EQ", "touch /tmp/f; chmod 701 /tmp/f 2>&1 | grep -o 'not supported'; chmod 702 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_LT", "touch /tmp/f; chmod 7 /tmp/f 2>&1 | grep -o 'not supported'; chmod 10 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_GT", "touch /tmp/f; chmod 6000 /tmp/f 2>&1 | grep -o 'not supported'; chmod 4000 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_MASKED_EQ", "touch /tmp/f; chmod 1755 /tmp/f 2>&1 | grep -o 'not supported'; chmod 2755 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_GE", "truncate -s 4096 /tmp/f 2>&1 | grep -o 'not supported'; truncate -s 4095 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_NE", "touch /tmp/f; chown 6 /tmp/f 2>&1 | grep -o 'not supported'; chown 5 /tmp/f && echo else", "not supported\nelse"),
                fact("SCMP_CMP_LE", "touch /tmp/l; chown -h 5 /tmp/l 2>&1 | grep -o 'not supported'; chown -h 6 /tmp/l && echo else", "not supported\nelse"),
            ],
        );
        cases.runs(
            demand("defaultAction holds for what no rule names, with defaultErrnoRet"),
            |spec| {
                spec["process"]["noNewPrivileges"] = json!(true);
                spec["process"]["args"] = json!(["/bin/mkdir", "/tmp/d"]);
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "defaultErrnoRet": 12,
                    "syscalls": [rule(&ENOUGH, "SCMP_ACT_ALLOW")],
                });
                spec["process"]["args"] = json!([
                    "/bin/sh",
                    "-c",
                    "/bin/mkdir /tmp/d 2>&1 | /bin/grep -o 'memory'"
                ]);
            },
            (0, "memory"),
        );
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32",
                              "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "syscalls": [rule(&ENOUGH, "SCMP_ACT_ALLOW")],
        });
        for (text, number, errno) in [
            ("a system call that no rule names is not permitted", SYNC, 1),
            (
                "one newer than all that are named is not implemented",
                1000,
                38,
            ),
        ] {
            let program = cases.bundle.path("rootfs/srv/call");
            std::fs::write(&program, calls(number)).expect("write a program");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&program, mode).expect("write a program");
            cases.runs(
                demand(text),
                |spec| {
                    spec["process"]["noNewPrivileges"] = json!(true);
                    spec["process"]["args"] = json!(["/srv/call"]);
                    spec["linux"]["seccomp"] = profile.clone();
                },
                (errno, ""),
            );
        }
        for (text, profile, words) in [
            (
                "an action that takes no errno with errnoRet",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    { "names": ["mkdir"], "action": "SCMP_ACT_KILL", "errnoRet": 1 },
                ] }),
                "errnoRet",
            ),
            (
                "a default action that takes no errno with defaultErrnoRet",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1, "syscalls": [] }),
                "defaultErrnoRet",
            ),
            (
                "an action that does not exist",
                json!({ "defaultAction": "SCMP_ACT_TIDE" }),
                "SCMP_ACT_TIDE",
            ),
            (
                "an operator that does not exist",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [when("mkdir", 0, "SCMP_CMP_TIDE", 0)] }),
                "SCMP_CMP_TIDE",
            ),
            (
                "an architecture that does not exist",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_TIDE"], "syscalls": [rule(&["mkdir"], "SCMP_ACT_ERRNO")] }),
                "SCMP_ARCH_TIDE",
            ),
            (
                "a flag that does not exist",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_TIDE"], "syscalls": [rule(&["mkdir"], "SCMP_ACT_ERRNO")] }),
                "SECCOMP_FILTER_FLAG_TIDE",
            ),
        ] {
            cases.refused(
                demand(text),
                |spec| spec["linux"]["seccomp"] = profile.clone(),
                words,
            );
        }
        cases.refused(
            demand("names without an entry").unproven("both pass over the rule"),
            |spec| {
                let rule = rule(&[], "SCMP_ACT_ERRNO");
                spec["linux"]["seccomp"] =
                    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
            },
            "names",
        );
        // What runtimes send waits there; no system call that the listener decides on is made.
        let socket = cases.bundle.path("listener");
        let _listener = UnixListener::bind(&socket).expect("listen");
        cases.refused(
            limit("SCMP_ACT_NOTIFY with a listenerPath"),
            |spec| {
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "listenerPath": socket,
                    "syscalls": [rule(&["mkdir"], "SCMP_ACT_NOTIFY")],
                });
            },
            "linux.seccomp.syscalls[].action",
        );
    });
}

/// The number of a system call that `ENOUGH` does not have, and that takes nothing.
const SYNC: u16 = if cfg!(target_arch = "aarch64") {
    81
} else {
    162
};

/// A program (elf(5)) that makes the system call of that number and exits with its error.
fn calls(number: u16) -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, Vec<u8>) = if cfg!(target_arch = "aarch64") {
        let code = [
            // mov x8, number; svc 0; neg x0, x0; mov x8, 93 (exit); svc 0
            0xd280_0008 | (u32::from(number) << 5),
            0xd400_0001,
            0xcb00_03e0,
            0xd280_0ba8,
            0xd400_0001,
        ];
        (
            183,
            code.iter().flat_map(|word| word.to_le_bytes()).collect(),
        )
    } else {
        let mut code = vec![0xb8]; // mov eax, number
        code.extend(u32::from(number).to_le_bytes());
        // syscall; neg eax; mov edi, eax; mov eax, 60 (exit); syscall
        code.extend([
            0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
        ]);
        (62, code)
    };
    let size = HEADERS + code.len() as u64;
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(16, 0);
    for half in [2, machine] {
        program.extend(half.to_le_bytes());
    }
    program.extend(1_u32.to_le_bytes());
    for wide in [ADDRESS + HEADERS, 64, 0] {
        program.extend(wide.to_le_bytes());
    }
    program.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        program.extend(half.to_le_bytes());
    }
    // The one segment: the file, to be read and executed.
    for word in [1_u32, 5] {
        program.extend(word.to_le_bytes());
    }
    for wide in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        program.extend(wide.to_le_bytes());
    }
    program.extend(code);
    program
}

/// What a runtime and busybox's shell, mkdir and grep cannot do without.
const ENOUGH: [&str; 68] = [
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clone",
    "clone3",
    "close",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "execve",
    "exit",
    "exit_group",
    "faccessat2",
    "fcntl",
    "fork",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "open",
    "pipe",
    "pipe2",
    "poll",
    "prctl",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rseq",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setuid",
    "stat",
    "tgkill",
    "umask",
    "vfork",
    "wait4",
    "write",
];
