//! config.md: the process.

use serde_json::{Value, json};

use super::{demand, fact, push, same, section};

fn args(args: &[&str]) -> impl Fn(&mut Value) {
    let args = json!(args);
    move |spec| spec["process"]["args"] = args.clone()
}

#[test]
fn process() {
    section("config.md#configProcess", |cases| {
        cases.inside(
            |spec| {
                spec["process"]["cwd"] = json!("/srv");
                spec["process"]["env"] = json!(["PATH=/bin", "TIDE=high water", "EMPTY="]);
                spec["process"]["consoleSize"] = json!({ "height": 25, "width": 80 });
            },
            &[
                fact("cwd is the working directory", "pwd", "/srv"),
                fact("env is the environment", "echo $TIDE", "high water"),
                fact("a variable may be empty", "env | grep EMPTY", "EMPTY="),
                fact(
                    "nothing of the runtime's environment is added",
                    "env | cut -d= -f1 | grep -vE '^(PATH|TIDE|EMPTY|HOME|PWD|SHLVL)$' | wc -l",
                    "0",
                ),
                fact(
                    "without terminal there is none",
                    "test -t 0 || test -t 1 || echo none",
                    "none",
                ),
                fact(
                    "consoleSize is ignored without terminal",
                    "stty size 2>/dev/null || echo no size",
                    "no size",
                ),
            ],
        );
        cases.runs(
            demand("args[0] without a slash is looked up in PATH"),
            args(&["echo", "found"]),
            (0, "found"),
        );
        cases.runs(
            demand("args are passed as they are"),
            args(&["/bin/printf", "[%s]", "a b", "", "$c", "'"]),
            (0, "[a b][][$c][']"),
        );
        cases.runs(
            demand("the process runs with the status it exits with"),
            args(&["/bin/sh", "-c", "exit 7"]),
            (7, ""),
        );
        cases.refused(
            demand("cwd has to be absolute"),
            |spec| spec["process"]["cwd"] = json!("srv"),
            "process.cwd srv is not absolute",
        );
        cases.refused(
            demand("at least one of args is required"),
            |spec| spec["process"]["args"] = json!([]),
            "process.args",
        );
        cases.refused(
            demand("args[0] has to be in PATH"),
            args(&["nothing-of-the-kind"]),
            "executable file not found in $PATH",
        );
        cases.refused(
            demand("args[0] with a slash has to exist"),
            args(&["/bin/nothing-of-the-kind"]),
            "no such file or directory",
        );
        let terminal = demand("a terminal is on the standard streams and /dev/console");
        cases.story(terminal, |stage| {
            // To a file: `ctr` gives a terminal that it shows the size of its own, at some time.
            let seen = stage.bundle.path("rootfs/srv/seen");
            let _ = std::fs::remove_file(&seen);
            let script = "size=$(stty size </dev/console)\n\
                          test -t 0 && test -t 1 && test -t 2 && echo $size >/srv/seen";
            let container = stage.container(|spec| {
                spec["process"]["terminal"] = json!(true);
                spec["process"]["consoleSize"] = json!({ "height": 31, "width": 77 });
                spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
            });
            let container = container.start_on_terminal(&[]);
            container.wait_until_stopped();
            container.remove();
            same(
                std::fs::read_to_string(&seen).unwrap_or_default().trim(),
                "31 77",
            )
        });
    });
}

/// Every resource of getrlimit(2): its name in /proc/self/limits, soft and hard limit.
const LIMITS: [(&str, &str, u64, u64); 16] = [
    ("RLIMIT_AS", "Max address space", 0x4000_0000, 0x5000_0000),
    ("RLIMIT_CORE", "Max core file size", 0, 1024),
    ("RLIMIT_CPU", "Max cpu time", 100, 200),
    ("RLIMIT_DATA", "Max data size", 0x3000_0000, 0x4000_0000),
    ("RLIMIT_FSIZE", "Max file size", 0x10_0000, 0x20_0000),
    ("RLIMIT_LOCKS", "Max file locks", 10, 20),
    ("RLIMIT_MEMLOCK", "Max locked memory", 0x1_0000, 0x2_0000),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size", 40960, 81920),
    ("RLIMIT_NICE", "Max nice priority", 3, 5),
    ("RLIMIT_NOFILE", "Max open files", 64, 128),
    ("RLIMIT_NPROC", "Max processes", 500, 600),
    ("RLIMIT_RSS", "Max resident set", 0x100_0000, 0x200_0000),
    ("RLIMIT_RTPRIO", "Max realtime priority", 4, 6),
    ("RLIMIT_RTTIME", "Max realtime timeout", 7000, 8000),
    ("RLIMIT_SIGPENDING", "Max pending signals", 30, 60),
    ("RLIMIT_STACK", "Max stack size", 0x40_0000, 0x80_0000),
];

#[test]
fn posix_process() {
    section("config.md#configPOSIXProcess", |cases| {
        let all = |spec: &mut Value| {
            let entry = |(name, _, soft, hard): &(_, _, _, _)| json!({ "type": name, "soft": soft, "hard": hard });
            spec["process"]["rlimits"] = LIMITS.iter().map(entry).collect();
        };
        cases.inside(
            all,
            &[
                fact(
                    "rlim_cur is soft",
                    "ulimit -Sn; ulimit -Ss; ulimit -Sf",
                    "64\n4096\n2048",
                ),
                fact(
                    "rlim_max is hard",
                    "ulimit -Hn; ulimit -Hs; ulimit -Hf",
                    "128\n8192\n4096",
                ),
            ],
        );
        cases.story(
            demand("every type of getrlimit(2) can be limited"),
            |stage| {
                let run = stage.run(|spec| {
                    all(spec);
                    spec["process"]["args"] = json!(["/bin/cat", "/proc/self/limits"]);
                });
                for (_, name, soft, hard) in LIMITS {
                    let line = run.stdout.lines().find(|line| line.starts_with(name));
                    let line = line.ok_or_else(|| format!("{name}: {run:?}"))?;
                    let words: Vec<&str> = line[name.len()..].split_whitespace().collect();
                    same(words[..2].join(" "), format!("{soft} {hard}"))?;
                }
                Ok(())
            },
        );
        cases.refused(
            demand("a type that no kernel interface has is an error"),
            |spec| {
                push(
                    &mut spec["process"]["rlimits"],
                    json!({ "type": "RLIMIT_TIDE", "soft": 1, "hard": 1 }),
                );
            },
            "RLIMIT_TIDE",
        );
        cases.refused(
            demand("entries with the same type are an error")
                .unproven("neither looks: the last one holds"),
            |spec| {
                let limit = |soft| json!({ "type": "RLIMIT_CORE", "soft": soft, "hard": 9 });
                spec["process"]["rlimits"] = json!([limit(1), limit(2)]);
            },
            "process.rlimits",
        );
    });
}

#[test]
fn linux_process() {
    section("config.md#configLinuxProcess", |cases| {
        // Bits: CHOWN 0, KILL 5, NET_BIND_SERVICE 10, SYS_CHROOT 18.
        let sets = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        });
        cases.inside(
            |spec| {
                spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
                spec["process"]["capabilities"] = sets.clone();
                spec["process"]["noNewPrivileges"] = json!(true);
                spec["process"]["oomScoreAdj"] = json!(321);
                spec["process"]["ioPriority"] =
                    json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
                spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 3 });
            },
            &[
                fact(
                    "capabilities.bounding is what can be had",
                    "grep CapBnd /proc/self/status",
                    "CapBnd:\t0000000000040421",
                ),
                fact(
                    "capabilities.inheritable is inherited",
                    "grep CapInh /proc/self/status",
                    "CapInh:\t0000000000000420",
                ),
                fact(
                    "capabilities.ambient is kept across execve",
                    "grep CapAmb /proc/self/status",
                    "CapAmb:\t0000000000000400",
                ),
                fact(
                    "a user other than root has the ambient set as permitted",
                    "grep CapPrm /proc/self/status",
                    "CapPrm:\t0000000000000400",
                ),
                fact(
                    "a user other than root has the ambient set as effective",
                    "grep CapEff /proc/self/status",
                    "CapEff:\t0000000000000400",
                ),
                fact(
                    "noNewPrivileges is set",
                    "grep NoNewPrivs /proc/self/status",
                    "NoNewPrivs:\t1",
                ),
                fact(
                    "oomScoreAdj is oom_score_adj",
                    "cat /proc/1/oom_score_adj",
                    "321",
                ),
                fact(
                    "scheduler.policy is the policy",
                    "cut -d' ' -f41 /proc/1/stat",
                    "3",
                ),
                fact(
                    "scheduler.nice is the nice value",
                    "cut -d' ' -f19 /proc/1/stat",
                    "3",
                ),
                fact(
                    "ioPriority is the I/O priority",
                    "ionice -p 1",
                    "best-effort: prio 6",
                ),
            ],
        );
        cases.inside(
            |spec| {
                spec["process"]["capabilities"] = sets.clone();
                spec["process"]["noNewPrivileges"] = json!(false);
                spec["process"]["ioPriority"] =
                    json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
                spec["process"]["scheduler"] = json!({
                    "policy": "SCHED_FIFO", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"],
                });
            },
            &[
                fact(
                    "root's permitted set is bounded",
                    "grep CapPrm /proc/self/status",
                    "CapPrm:\t0000000000040421",
                ),
                fact(
                    "root's effective set is bounded",
                    "grep CapEff /proc/self/status",
                    "CapEff:\t0000000000040421",
                ),
                fact(
                    "a capability that is not granted is not there",
                    "hostname tide 2>&1 | grep -o 'not permitted'",
                    "not permitted",
                ),
                fact(
                    "without noNewPrivileges it is not set",
                    "grep NoNewPrivs /proc/self/status",
                    "NoNewPrivs:\t0",
                ),
                fact("SCHED_FIFO is a policy", "cut -d' ' -f41 /proc/1/stat", "1"),
                fact(
                    "scheduler.priority is the priority",
                    "cut -d' ' -f40 /proc/1/stat",
                    "7",
                ),
                fact(
                    "SCHED_FLAG_RESET_ON_FORK is a flag",
                    "cut -d' ' -f41 /proc/self/stat",
                    "0",
                ),
                fact("IOPRIO_CLASS_IDLE is a class", "ionice -p 1", "idle"),
            ],
        );
        cases.inside(
            |spec| {
                spec["process"]["capabilities"] = Value::Null;
                spec["process"]["ioPriority"] =
                    json!({ "class": "IOPRIO_CLASS_RT", "priority": 2 });
                spec["process"]["scheduler"] = json!({ "policy": "SCHED_IDLE" });
            },
            &[
                fact(
                    "no capabilities are none",
                    "grep CapEff /proc/self/status",
                    "CapEff:\t0000000000000000",
                ),
                fact(
                    "no capabilities are none to be had",
                    "grep CapBnd /proc/self/status",
                    "CapBnd:\t0000000000000000",
                ),
                fact("SCHED_IDLE is a policy", "cut -d' ' -f41 /proc/1/stat", "5"),
                fact(
                    "IOPRIO_CLASS_RT is a class",
                    "ionice -p 1",
                    "realtime: prio 2",
                ),
            ],
        );
        cases.inside(
            |spec| {
                let set = json!(["CAP_KILL", "CAP_OF_THE_FUTURE"]);
                spec["process"]["capabilities"] =
                    json!({ "bounding": set, "permitted": set, "effective": set });
                spec["process"]["scheduler"] = json!({ "policy": "SCHED_RR", "priority": 2 });
            },
            &[
                fact(
                    "a capability that the kernel does not have is no error",
                    "grep CapEff /proc/self/status",
                    "CapEff:\t0000000000000020",
                ),
                fact("SCHED_RR is a policy", "cut -d' ' -f41 /proc/1/stat", "2"),
            ],
        );
        cases.refused(
            demand("a scheduler's policy that does not exist is an error"),
            |spec| spec["process"]["scheduler"] = json!({ "policy": "SCHED_TIDE" }),
            "SCHED_TIDE",
        );
        cases.refused(
            demand("an I/O class that does not exist is an error"),
            |spec| {
                spec["process"]["ioPriority"] =
                    json!({ "class": "IOPRIO_CLASS_TIDE", "priority": 1 });
            },
            "IOPRIO_CLASS_TIDE",
        );
        cases.refused(
            demand("an oomScoreAdj that the kernel refuses is an error"),
            |spec| spec["process"]["oomScoreAdj"] = json!(1001),
            "oom",
        );
    });
}

#[test]
fn user() {
    section("config.md#configPOSIXUser", |cases| {
        cases.inside(
            |spec| {
                spec["process"]["user"] =
                    json!({ "uid": 1000, "gid": 100, "umask": 23, "additionalGids": [7, 2000] });
            },
            &[
                fact("uid is the user", "id -u", "1000"),
                fact("gid is the group", "id -g", "100"),
                fact("additionalGids are further groups", "id -G", "100 7 2000"),
                fact("umask is the umask", "umask", "0027"),
                fact(
                    "files belong to the user and the group",
                    "touch /tmp/mine; stat -c %u:%g:%a /tmp/mine",
                    "1000:100:640",
                ),
                fact(
                    "real, effective, saved and file-system ids are the same",
                    "grep Uid: /proc/self/status",
                    "Uid:\t1000\t1000\t1000\t1000",
                ),
            ],
        );
        cases.inside(
            |_| (),
            &[fact("without umask it is the runtime's", "umask", "0022")],
        );
    });
}
