//! The filters, tried on the kernel: what is not listed is stopped and named, what is listed is let
//! through, and the lists keep what docs/security.md promises.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Resource, Rlimit, setrlimit};
use vhost::vhost_kern::vhost_binding as vhost;

use super::filter_list::{self, Rule};
use super::seccomp::{Filters, Thread};

const VCPU: &str = include_str!("vcpu.filter");
const EVENT_LOOP: &str = include_str!("event_loop.filter");
const DISK: &str = include_str!("disk.filter");
const CARD: &str = include_str!("card.filter");
const LISTS: [(Thread, &str, usize); 4] = [
    (Thread::Vcpu, VCPU, 20),
    (Thread::EventLoop, EVENT_LOOP, 35),
    (Thread::Disk, DISK, 35),
    (Thread::Card, CARD, 20),
];

/// The highest number of a call that is tried; Linux 6.18 has fewer.
const CALLS: i64 = 512;

/// uretprobe and uprobe, which x86's kernels of 6.14 and later keep out of filters: a kernel that is
/// tracing puts them into a program itself, and whoever else makes them gets a SIGILL (seccomp.c).
#[cfg(target_arch = "x86_64")]
const UNFILTERED: [i64; 2] = [335, 336];
#[cfg(not(target_arch = "x86_64"))]
const UNFILTERED: [i64; 0] = [];

fn rules(list: &str) -> Vec<Rule<'_>> {
    filter_list::parse(list, std::env::consts::ARCH).unwrap()
}

fn names(list: &str) -> BTreeSet<&str> {
    rules(list).iter().map(|rule| rule.name).collect()
}

/// Works in a child that is prepared for filters; returns how it ended and what it said.
#[expect(unsafe_code, reason = "a child that does something forbidden")]
fn in_child(work: impl FnOnce(Filters)) -> (ExitStatus, String) {
    let (mut said, says) = std::io::pipe().unwrap();
    // SAFETY: the child has one thread, works, and ends without running destructors; the C library
    // keeps its allocator whole in it (fork(3)).
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        // SAFETY: both descriptors are open.
        unsafe { libc::dup2(says.as_raw_fd(), libc::STDERR_FILENO) };
        let no_dump = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        if setrlimit(Resource::Core, no_dump).is_ok()
            && let Ok(filters) = Filters::prepare()
        {
            work(filters);
            // SAFETY: ends the process.
            unsafe { libc::syscall(libc::SYS_exit_group, 0) };
        }
        // SAFETY: ends the process.
        unsafe { libc::_exit(99) };
    }
    drop(says);
    let mut status = 0;
    // SAFETY: `child` is a child of ours that nobody else waits for; `status` is an int.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    (ExitStatus::from_raw(status), text)
}

/// Makes a call in a child that is confined as `thread`.
#[expect(unsafe_code, reason = "a call that may be forbidden")]
fn attempt(thread: Thread, call: i64, arguments: [i64; 6]) -> (ExitStatus, String) {
    in_child(|filters| {
        if filters.confine(thread).is_err() {
            // SAFETY: ends the process.
            unsafe { libc::_exit(99) };
        }
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the kernel checks the arguments; nothing of Rust's is used after it.
        unsafe { libc::syscall(call, a, b, c, d, e, f) };
    })
}

fn is_stopped(thread: Thread, call: i64, arguments: [i64; 6]) -> bool {
    let (status, said) = attempt(thread, call, arguments);
    let stopped = status.signal() == Some(libc::SIGSYS);
    // What is let through may end the child in any other way, but does not come back unprepared.
    assert_ne!(status.code(), Some(99), "call {call}");
    let named = said.contains(&format!(
        "made system call {call}, which its filter does not have"
    ));
    assert_eq!(named, stopped, "call {call}: {status}, {said:?}");
    stopped
}

#[test]
fn whatever_is_not_listed_is_stopped_and_named() {
    for (thread, list, _) in LISTS {
        let let_through: Vec<i64> = (0..CALLS)
            .filter(|call| !UNFILTERED.contains(call))
            .filter(|&call| !is_stopped(thread, call, [-1; 6]))
            .collect();
        // Those with a condition do not meet it with these arguments.
        let unconditional: BTreeSet<_> = rules(list)
            .iter()
            .filter(|rule| rule.condition.is_none())
            .map(|rule| rule.name)
            .collect();
        assert_eq!(
            let_through.len(),
            unconditional.len(),
            "{thread:?}: {let_through:?}"
        );
    }
}

#[test]
fn arguments_are_looked_at() {
    use Thread::{Card, EventLoop, Vcpu};

    let ioctl = |request: u32| [-1, request.into(), 0, 0, 0, 0];
    let map = |protection: libc::c_int| [0, 0, protection.into(), 0, -1, 0];
    let pair = |family: libc::c_int| [family.into(), 0, 0, 0, 0, 0];
    for (thread, call, arguments, stopped) in [
        (Vcpu, libc::SYS_ioctl, ioctl(0xae80), false),
        // KVM_SET_USER_MEMORY_REGION, TIOCSTI
        (Vcpu, libc::SYS_ioctl, ioctl(0x4020_ae46), true),
        (Vcpu, libc::SYS_ioctl, ioctl(0x5412), true),
        // TUNSETQUEUE, TUNSETIFF
        (Vcpu, libc::SYS_ioctl, ioctl(0x4004_54d9), false),
        (EventLoop, libc::SYS_ioctl, ioctl(0x4004_54d9), false),
        (Card, libc::SYS_ioctl, ioctl(0x4004_54d9), true),
        (EventLoop, libc::SYS_ioctl, ioctl(0x4004_54ca), true),
        (EventLoop, libc::SYS_ioctl, ioctl(0xae80), true),
        (EventLoop, libc::SYS_ioctl, ioctl(0x5412), true),
        (EventLoop, libc::SYS_socketpair, pair(libc::AF_UNIX), false),
        (EventLoop, libc::SYS_socketpair, pair(libc::AF_TIPC), true),
        (Vcpu, libc::SYS_socketpair, pair(libc::AF_UNIX), true),
    ] {
        let found = is_stopped(thread, call, arguments);
        assert_eq!(found, stopped, "{thread:?}, call {call}, {arguments:x?}");
    }
    // linux/vhost.h has the numbers by this library's word, too.
    for (call, by_vcpu, by_event_loop) in [
        (vhost::VHOST_SET_FEATURES(), true, false),
        (vhost::VHOST_SET_VRING_NUM(), true, false),
        (vhost::VHOST_SET_VRING_BASE(), true, false),
        (vhost::VHOST_SET_VRING_ADDR(), true, false),
        (vhost::VHOST_SET_VRING_CALL(), true, false),
        (vhost::VHOST_SET_VRING_KICK(), true, false),
        (vhost::VHOST_NET_SET_BACKEND(), true, true),
        // Which memory it may reach, and whose, is settled before.
        (vhost::VHOST_SET_MEM_TABLE(), false, false),
        (vhost::VHOST_SET_OWNER(), false, false),
        (vhost::VHOST_SET_LOG_BASE(), false, false),
    ] {
        let request = ioctl(u32::try_from(call).unwrap());
        for (thread, allowed) in [(Vcpu, by_vcpu), (EventLoop, by_event_loop)] {
            let found = is_stopped(thread, libc::SYS_ioctl, request);
            assert_eq!(found, !allowed, "{thread:?}, {request:x?}");
        }
    }
    for (thread, _, _) in LISTS {
        // FIONBIO, FIOASYNC; F_SETFL.
        for mode in [0x5421, 0x5452] {
            assert!(is_stopped(thread, libc::SYS_ioctl, ioctl(mode)));
        }
        let mode = [-1, libc::F_SETFL.into(), 0, 0, 0, 0];
        assert!(is_stopped(thread, libc::SYS_fcntl, mode));
        let data = libc::PROT_READ | libc::PROT_WRITE;
        assert!(!is_stopped(thread, libc::SYS_mmap, map(data)));
        for code in [libc::PROT_EXEC, libc::PROT_EXEC | libc::PROT_READ, -1] {
            assert!(is_stopped(thread, libc::SYS_mmap, map(code)));
            let protect = [0, 0, code.into(), 0, 0, 0];
            assert!(is_stopped(thread, libc::SYS_mprotect, protect));
        }
    }
}

/// CVE-2025-38236: `MSG_OOB` on a socket of `AF_UNIX` left a pointer to freed memory in the kernel, by which
/// a sandboxed renderer of Chrome's took it over.
#[test]
fn cve_2025_38236_no_socket_is_used_out_of_band() {
    let usual = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let message = |flags: libc::c_int| [-1, 0, flags.into(), 0, 0, 0];
    let bytes = |flags: libc::c_int| [-1, 0, 0, flags.into(), 0, 0];
    for (call, flags, arguments) in [
        (libc::SYS_sendmsg, usual, message as fn(_) -> _),
        (libc::SYS_recvmsg, libc::MSG_CMSG_CLOEXEC, message),
        (libc::SYS_sendto, usual, bytes),
        (libc::SYS_recvfrom, libc::MSG_DONTWAIT, bytes),
    ] {
        assert!(!is_stopped(Thread::EventLoop, call, arguments(flags)));
        for (thread, _, _) in LISTS {
            for others in [
                libc::MSG_OOB,
                libc::MSG_OOB | flags,
                libc::MSG_PEEK | flags,
                0,
            ] {
                let found = is_stopped(thread, call, arguments(others));
                assert!(found, "{thread:?}, call {call}, {others:#x}");
            }
        }
    }
}

#[test]
fn a_panic_is_told_as_one_whichever_thread_it_is_on() {
    for (thread, _, _) in LISTS {
        let (status, said) = in_child(|filters| {
            crate::report::end_on_panic();
            if filters.confine(thread).is_ok() {
                panic!("high tide");
            }
        });
        assert_eq!(status.code(), Some(1), "{thread:?}: {status}, {said:?}");
    }
}

/// A disk's file may be taken away while its thread works on it, and is closed there. A card's thread waits
/// with descriptors of its own.
#[test]
#[expect(unsafe_code, reason = "closes a descriptor as a release does")]
fn the_threads_of_devices_close_what_they_have_and_end() {
    for thread in [Thread::Disk, Thread::Card] {
        let (status, said) = in_child(|filters| {
            let file = tempfile::tempfile().unwrap().into_raw_fd();
            // SAFETY: nobody else owns it. Dropped as a file, it would first be asked whether it is open
            // (`fcntl`), in a test's build alone.
            let work = move || _ = unsafe { libc::close(file) };
            (filters.start(thread, "device".to_owned(), work)).unwrap();
            let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
            while threads() > 1 {
                std::thread::yield_now();
            }
        });
        assert!(status.success(), "{thread:?}: {status}, {said:?}");
    }
}

#[test]
fn lists_are_short_and_have_nothing_that_reaches_beyond_the_descriptors_there_are() {
    for (thread, list, most) in LISTS {
        let names = names(list);
        assert!(names.len() <= most, "{thread:?}: {}", names.len());
        for forbidden in [
            "open",
            "openat",
            "openat2",
            "creat",
            "socket",
            "connect",
            "bind",
            "accept",
            "accept4",
            "execve",
            "execveat",
            "clone",
            "clone3",
            "fork",
            "vfork",
            "ptrace",
            "kill",
            "prctl",
            "seccomp",
            "rt_sigaction",
            "fcntl",
            "process_vm_readv",
            "process_vm_writev",
            "mount",
            "unshare",
            "setns",
            "bpf",
            "userfaultfd",
            "io_uring_setup",
            "memfd_create",
            "mprotect",
        ] {
            assert!(!names.contains(forbidden), "{thread:?}: {forbidden}");
        }
        for rule in rules(list) {
            let conditional = [
                "ioctl",
                "mmap",
                "recvfrom",
                "recvmmsg",
                "recvmsg",
                "sendmmsg",
                "sendmsg",
                "sendto",
                "socketpair",
            ];
            if conditional.contains(&rule.name) {
                assert!(rule.condition.is_some(), "{thread:?}: {}", rule.name);
            }
        }
    }
}

#[test]
fn both_architectures_have_their_calls() {
    for (_, list, _) in LISTS {
        let of = |architecture| filter_list::parse(list, architecture).unwrap();
        let has = |architecture, name| of(architecture).iter().any(|rule| rule.name == name);
        assert!(has("x86_64", "futex") && has("aarch64", "futex"));
        assert!(!has("aarch64", "epoll_wait"));
    }
}

#[test]
fn a_line_without_a_reason_or_with_an_unknown_word_is_no_rule() {
    for line in [
        "read",
        "read #",
        "i386 read # reason",
        "read if arg0 == TIDE # reason",
        "read if argx == 0 # reason",
        "read if arg0 # reason",
        "read if arg0 == MSG_DONTWAIT | TIDE # reason",
        "x86_64 read twice # reason",
    ] {
        let error = filter_list::parse(line, "x86_64").unwrap_err();
        assert!(error.starts_with("line 1 is no rule"), "{error}");
    }
    let rules = filter_list::parse(
        "# note\n\nmmap if arg2 & PROT_EXEC == 0 # (rare) why\n",
        "x86_64",
    );
    let either = filter_list::parse(
        "sendto if arg3 == MSG_NOSIGNAL | MSG_DONTWAIT # why\n",
        "x86_64",
    );
    let condition = either.unwrap()[0].condition;
    assert_eq!(
        condition.map(|c| (c.mask, c.value)),
        Some((u32::MAX, 0x4040))
    );
    let condition = Some(filter_list::Condition {
        argument: 2,
        mask: 4,
        value: 0,
    });
    assert_eq!(
        rules,
        Ok(vec![Rule {
            architecture: None,
            name: "mmap",
            condition,
            ordinary: false,
        }])
    );
}
