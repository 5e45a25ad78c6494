//! config-linux.md: devices, those that are always there and those that may be used.

use std::fs;

use serde_json::{Value, json};

use super::{demand, fact, limit, push, same, section};

fn device(spec: &mut Value, device: Value) {
    push(&mut spec["linux"]["devices"], device);
}

#[test]
fn devices() {
    section("config-linux.md#configLinuxDevices", |cases| {
        cases.inside(
            |spec| {
                device(spec, json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                                     "fileMode": 0o640, "uid": 1, "gid": 2 }));
                device(spec, json!({ "path": "/dev/deep/er/tun", "type": "u", "major": 10, "minor": 200 }));
                device(spec, json!({ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 }));
                device(spec, json!({ "path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600 }));
            },
            &[
                fact("a device is at path", "stat -c '%F %t:%T' /dev/fuse", "character special file a:e5"),
                fact("fileMode is its mode", "stat -c %a /dev/fuse", "640"),
                fact("uid is its owner", "stat -c %u /dev/fuse", "1"),
                fact("gid is its group", "stat -c %g /dev/fuse", "2"),
                fact("a device may be in a directory that is new", "stat -c '%t:%T' /dev/deep/er/tun", "a:c8"),
                fact("u is a character device", "stat -c %F /dev/deep/er/tun", "character special file"),
                fact("p is a pipe", "stat -c '%F %a' /dev/pipe", "fifo 600"),
                fact("a default device may be listed", "stat -c '%t:%T %a' /dev/zero", "1:5 600"),
            ],
        );
        cases.story(demand("path may be outside /dev"), |stage| {
            let _ = fs::remove_dir_all(stage.bundle.path("rootfs/opt"));
            // Again: the root is one that has been used before.
            for _ in 0..2 {
                let run = stage.run(|spec| {
                    let null = json!({ "path": "/opt/own/null", "type": "c", "major": 1, "minor": 3,
                                       "fileMode": 0o662, "uid": 1, "gid": 2 });
                    device(spec, null);
                    spec["root"]["readonly"] = json!(true);
                    let script = "cd /opt/own; stat -c '%F %t:%T %a %u:%g' null; echo lost >null";
                    spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
                });
                let expected = "character special file 1:3 662 1:2";
                same((run.status, run.stdout.trim()), (0, expected))
                    .map_err(|differs| format!("{differs}: {}", run.stderr.trim()))?;
            }
            Ok(())
        });
        fs::write(cases.bundle.path("rootfs/srv/taken"), "tide").expect("make a file");
        cases.refused(
            demand("another file at path is an error")
                .unproven("both leave the file that is there"),
            |spec| {
                device(
                    spec,
                    json!({ "path": "/srv/taken", "type": "c", "major": 1, "minor": 3 }),
                );
            },
            "/srv/taken",
        );
        cases.refused(
            limit("character devices of the host"),
            |spec| {
                device(
                    spec,
                    json!({ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 }),
                );
            },
            "linux.devices[/dev/kmsg]",
        );
    });
}

#[test]
fn default_devices() {
    section("config-linux.md#configLinuxDefaultDevices", |cases| {
        cases.inside(
            |_| (),
            &[
                fact("/dev/null", "stat -c '%F %t:%T %a' /dev/null; echo x >/dev/null && echo used", "character special file 1:3 666\nused"),
                fact("/dev/zero", "stat -c '%F %t:%T %a' /dev/zero; head -c 2 /dev/zero | xxd -p", "character special file 1:5 666\n0000"),
                fact("/dev/full", "stat -c '%F %t:%T %a' /dev/full; (echo x >/dev/full) 2>&1 | grep -o 'No space'", "character special file 1:7 666\nNo space"),
                fact("/dev/random", "stat -c '%F %t:%T %a' /dev/random; head -c 8 /dev/random | wc -c", "character special file 1:8 666\n8"),
                fact("/dev/urandom", "stat -c '%F %t:%T %a' /dev/urandom; head -c 8 /dev/urandom | wc -c", "character special file 1:9 666\n8"),
                fact("/dev/tty", "stat -c '%F %t:%T %a' /dev/tty", "character special file 5:0 666"),
                fact("/dev/ptmx is /dev/pts/ptmx", "readlink -f /dev/ptmx; stat -L -c %t:%T /dev/ptmx", "/dev/pts/ptmx\n5:2"),
                fact("without a terminal there is no /dev/console", "test -c /dev/console || echo none", "none"),
            ],
        );
    });
}

/// The symbolic links that runtime-linux.md wants, where /proc is mounted.
#[test]
fn dev_links() {
    section("runtime-linux.md#dev-symbolic-links", |cases| {
        cases.inside(
            |_| (),
            &[
                fact("/dev/fd", "readlink /dev/fd", "/proc/self/fd"),
                fact("/dev/stdin", "readlink /dev/stdin", "/proc/self/fd/0"),
                fact("/dev/stdout", "readlink /dev/stdout", "/proc/self/fd/1"),
                fact("/dev/stderr", "readlink /dev/stderr", "/proc/self/fd/2"),
                fact(
                    "no file descriptors but the standard streams are open",
                    "ls /proc/1/fd | grep -vE '^(0|1|2|10)$' | wc -l",
                    "0",
                ),
            ],
        );
    });
}

#[test]
fn allowed_devices() {
    section("config-linux.md#configLinuxDeviceAllowedlist", |cases| {
        // kmsg is 1:11, hpet and its like have the major number 10.
        let rule = |allow, minor: i64, access: &str| json!({ "allow": allow, "type": "c", "major": 1, "minor": minor, "access": access });
        cases.inside(
            |spec| {
                spec["linux"]["resources"]["devices"] = json!([
                    { "allow": false, "access": "rwm" },
                    rule(true, 11, "r"),
                    rule(true, 4, "rw"),
                    rule(false, 4, "rw"),
                ]);
                let all = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_RAWIO", "CAP_SYS_ADMIN"]);
                for set in ["bounding", "permitted", "effective"] {
                    spec["process"]["capabilities"][set] = all.clone();
                }
            },
            &[
                fact(
                    "what is allowed can be used",
                    "mknod /dev/kmsg c 1 11; head -c 1 /dev/kmsg | wc -c",
                    "1",
                ),
                fact(
                    "only the access that is allowed",
                    "mknod /dev/kmsg2 c 1 11; (echo x >/dev/kmsg2) 2>&1 | grep -o 'not permitted'",
                    "not permitted",
                ),
                fact(
                    "what is not allowed cannot be used",
                    "mknod /dev/mem c 1 1; head -c 1 /dev/mem 2>&1 | grep -o 'not permitted'",
                    "not permitted",
                ),
                fact(
                    "a block device that is not allowed cannot be used",
                    "mknod /dev/block b 254 0; head -c 1 /dev/block 2>&1 | grep -o 'not permitted'",
                    "not permitted",
                ),
                fact(
                    "entries are applied in the listed order",
                    "mknod /dev/port c 1 4; head -c 1 /dev/port 2>&1 | grep -o 'not permitted'",
                    "not permitted",
                ),
                fact(
                    "default devices can always be used",
                    "echo x >/dev/null && echo used",
                    "used",
                ),
            ],
        );
        cases.inside(
            |spec| {
                spec["linux"]["resources"]["devices"] = json!([
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 1, "access": "rw" },
                ]);
                for set in ["bounding", "permitted", "effective"] {
                    spec["process"]["capabilities"][set] = json!(["CAP_MKNOD", "CAP_SYSLOG"]);
                }
            },
            &[fact(
                "an unset number means all",
                "mknod /dev/all c 1 11; head -c 1 /dev/all | wc -c",
                "1",
            )],
        );
    });
}
