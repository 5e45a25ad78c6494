//! config-linux.md: kernel parameters, paths, propagation, personality.

use std::env::consts::ARCH;

use serde_json::json;

use super::{demand, fact, mount, section};

#[test]
fn sysctl() {
    section("config-linux.md#configLinuxSysctl", |cases| {
        cases.inside(
            |spec| {
                spec["linux"]["sysctl"] = json!({
                    "net.ipv4.ip_forward": "1",
                    "net.core.somaxconn": "256",
                    "net.ipv4.ip_local_port_range": "2000 3000",
                    "kernel.msgmax": "4096",
                    "kernel.shm_rmid_forced": "1",
                    "fs.mqueue.msg_max": "7",
                    "kernel.domainname": "tide.test",
                });
            },
            &[
                fact(
                    "net.ipv4.ip_forward",
                    "cat /proc/sys/net/ipv4/ip_forward",
                    "1",
                ),
                fact(
                    "net.core.somaxconn",
                    "cat /proc/sys/net/core/somaxconn",
                    "256",
                ),
                fact(
                    "a value of several words",
                    "cat /proc/sys/net/ipv4/ip_local_port_range",
                    "2000\t3000",
                ),
                fact("kernel.msgmax", "cat /proc/sys/kernel/msgmax", "4096"),
                fact(
                    "kernel.shm_rmid_forced",
                    "cat /proc/sys/kernel/shm_rmid_forced",
                    "1",
                ),
                fact("fs.mqueue.msg_max", "cat /proc/sys/fs/mqueue/msg_max", "7"),
                fact(
                    "kernel.domainname",
                    "cat /proc/sys/kernel/domainname",
                    "tide.test",
                ),
            ],
        );
        cases.refused(
            demand("a parameter that is not the container's own is an error"),
            |spec| spec["linux"]["sysctl"] = json!({ "vm.swappiness": "7" }),
            "vm.swappiness",
        );
        cases.refused(
            demand("a parameter that does not exist is an error"),
            |spec| spec["linux"]["sysctl"] = json!({ "net.tide": "7" }),
            "net",
        );
    });
}

#[test]
fn paths() {
    section("config-linux.md#configLinuxMaskedPaths", |cases| {
        cases.inside(
            |spec| {
                mount(spec, "/m", "tmpfs", "tmpfs", &[]);
                spec["linux"]["maskedPaths"] = json!([
                    "/proc/kcore",
                    "/proc/version",
                    "/proc/irq",
                    "/nothing/of/the/kind"
                ]);
                spec["linux"]["readonlyPaths"] =
                    json!(["/proc/sys", "/m", "/srv", "/nothing/of/the/kind"]);
            },
            &[
                fact("a masked file cannot be read", "wc -c </proc/version", "0"),
                fact("a masked directory is empty", "ls /proc/irq", ""),
                fact(
                    "a masked directory cannot be written",
                    "touch /proc/irq/new 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact(
                    "a path that does not exist may be masked",
                    "test -e /nothing || echo none",
                    "none",
                ),
                fact(
                    "a readonly path of /proc cannot be written",
                    "(echo 1 >/proc/sys/net/ipv4/ip_forward) 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact(
                    "a readonly mount cannot be written",
                    "touch /m/new 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact(
                    "a readonly directory of the root cannot be written",
                    "touch /srv/new 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact(
                    "a readonly path can be read",
                    "cat /proc/sys/kernel/ostype",
                    "Linux",
                ),
            ],
        );
        cases.inside(
            |spec| {
                spec["linux"]["maskedPaths"] = json!([]);
                spec["linux"]["readonlyPaths"] = json!([]);
            },
            &[
                fact(
                    "nothing else is masked",
                    "test -n \"$(cat /proc/version)\" && echo read",
                    "read",
                ),
                fact(
                    "nothing else is readonly",
                    "echo tide >/proc/sys/kernel/domainname && echo written",
                    "written",
                ),
            ],
        );
    });
}

#[test]
fn propagation() {
    section(
        "config-linux.md#configLinuxRootfsMountPropagation",
        |cases| {
            for (value, fact) in [
                (
                    "shared",
                    fact("shared", "propagation / | grep shared", "shared"),
                ),
                (
                    "slave",
                    fact("slave", "propagation / | grep -cE 'shared|unbindable'", "0"),
                ),
                ("private", fact("private", "propagation /", "")),
                (
                    "unbindable",
                    fact(
                        "unbindable",
                        "propagation / | grep unbindable",
                        "unbindable",
                    ),
                ),
                // The specification has the four words alone; engines say these.
                (
                    "rshared",
                    fact("rshared", "propagation / | grep shared", "shared"),
                ),
                (
                    "rslave",
                    fact(
                        "rslave",
                        "propagation / | grep -cE 'shared|unbindable'",
                        "0",
                    ),
                ),
                ("rprivate", fact("rprivate", "propagation /", "")),
                (
                    "runbindable",
                    fact(
                        "runbindable",
                        "propagation / | grep unbindable",
                        "unbindable",
                    ),
                ),
            ] {
                cases.inside(
                    |spec| spec["linux"]["rootfsPropagation"] = json!(value),
                    &[fact],
                );
            }
            cases.refused(
                demand("another value is an error"),
                |spec| spec["linux"]["rootfsPropagation"] = json!("tidal"),
                "tidal",
            );
        },
    );
}

#[test]
fn personality() {
    section("config-linux.md#configLinuxPersonality", |cases| {
        // What each architecture's kernel calls its 32-bit processor.
        let narrow = if cfg!(target_arch = "aarch64") {
            "armv8l"
        } else {
            "i686"
        };
        cases.inside(
            |spec| spec["linux"]["personality"] = json!({ "domain": "LINUX32" }),
            &[fact("LINUX32 is a 32-bit processor", "uname -m", narrow)],
        );
        cases.inside(
            |spec| spec["linux"]["personality"] = json!({ "domain": "LINUX" }),
            &[fact("LINUX is the processor", "uname -m", ARCH)],
        );
    });
}
