//! config.md: mounts and their options.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use hull_tests::command;
use serde_json::{Value, json};

use super::{demand, fact, mount, push, section};

#[test]
fn mounts() {
    section("config.md#configMounts", |cases| {
        let file = cases.bundle.path("file");
        fs::write(&file, "high\n").expect("write a file");
        let file = file.display().to_string();
        cases.inside(
            |spec| {
                mount(
                    spec,
                    "/m/tmpfs",
                    "tmpfs",
                    "tmpfs",
                    &["size=64k", "mode=750", "uid=3", "gid=4"],
                );
                mount(spec, "/m/tmpfs/in", "tmpfs", "tmpfs", &[]);
                mount(spec, "/m/hidden/in", "tmpfs", "tmpfs", &[]);
                mount(spec, "/m/hidden", "tmpfs", "tmpfs", &[]);
                mount(spec, "/m/file", "none", &file, &["bind"]);
                mount(spec, "/m/twice", "tmpfs", "tmpfs", &["mode=700"]);
                mount(spec, "/m/twice", "tmpfs", "tmpfs", &["mode=711"]);
                mount(spec, "m/relative", "tmpfs", "tmpfs", &[]);
                mount(spec, "/m/config.json", "none", "config.json", &["bind"]);
            },
            &[
                fact(
                    "a file system is mounted at destination",
                    "type /m/tmpfs",
                    "tmpfs",
                ),
                fact("a mount may be below another", "type /m/tmpfs/in", "tmpfs"),
                fact("mounts are made in the listed order", "ls /m/hidden", ""),
                fact(
                    "the last mount at a destination is on top",
                    "stat -c %a /m/twice",
                    "711",
                ),
                fact(
                    "options of the file system are its",
                    "stat -c %a:%u:%g /m/tmpfs; df -k /m/tmpfs | awk 'END { print $2 }'",
                    "750:3:4\n64",
                ),
                fact(
                    "the source of a bind mount may be a file",
                    "cat /m/file",
                    "high",
                ),
                fact(
                    "the type of a bind mount does not matter",
                    "cat /m/file",
                    "high",
                ),
                fact(
                    "a relative destination is below /",
                    "type /m/relative",
                    "tmpfs",
                ),
                fact(
                    "a relative source is in the bundle",
                    "grep -c ociVersion /m/config.json",
                    "1",
                ),
            ],
        );
        cases.inside(
            |spec| {
                mount(
                    spec,
                    "/sys/fs/cgroup",
                    "cgroup",
                    "cgroup",
                    &["ro", "nosuid", "noexec", "nodev"],
                );
            },
            &[
                fact(
                    "proc can be mounted",
                    "type /proc; test -r /proc/self/status && echo yes",
                    "proc\nyes",
                ),
                fact(
                    "sysfs can be mounted",
                    "type /sys; test -d /sys/kernel && echo yes",
                    "sysfs\nyes",
                ),
                fact(
                    "devpts can be mounted",
                    "type /dev/pts; test -c /dev/pts/ptmx && echo yes",
                    "devpts\nyes",
                ),
                fact("mqueue can be mounted", "type /dev/mqueue", "mqueue"),
                fact(
                    "tmpfs can be mounted for shared memory",
                    "type /dev/shm; stat -c %a /dev/shm",
                    "tmpfs\n1777",
                ),
                fact(
                    "cgroup can be mounted",
                    "type /sys/fs/cgroup; test -r /sys/fs/cgroup/cgroup.procs && echo yes",
                    "cgroup2\nyes",
                ),
                fact(
                    "ro holds for cgroup",
                    "mkdir /sys/fs/cgroup/new 2>&1 | grep -o 'Read-only'",
                    "Read-only",
                ),
                fact(
                    "options of devpts are its",
                    "grep -E ' /dev/pts ' /proc/mounts | grep -o 'gid=5,mode=620,ptmxmode=666'",
                    "gid=5,mode=620,ptmxmode=666",
                ),
            ],
        );
        cases.refused(
            demand("the source of a bind mount has to exist"),
            |spec| mount(spec, "/m", "none", "/run/nothing-of-the-kind", &["bind"]),
            "/run/nothing-of-the-kind",
        );
        cases.refused(
            demand("a type that the kernel does not have is an error"),
            |spec| mount(spec, "/m", "tidefs", "tidefs", &[]),
            "tidefs",
        );
        cases.refused(
            demand("an option that the file system does not have is an error"),
            |spec| mount(spec, "/m", "tmpfs", "tmpfs", &["tide=high"]),
            "/m",
        );
    });
}

/// Mounts a tmpfs at `/m/NAME` for each name and its options.
fn tmpfs(spec: &mut Value, mounts: &[(&str, &[&str])]) {
    for (name, options) in mounts {
        mount(spec, &format!("/m/{name}"), "tmpfs", "tmpfs", options);
    }
}

#[test]
fn options() {
    section("config.md#configLinuxMountOptions", |cases| {
        cases.inside(
            |spec| {
                tmpfs(
                    spec,
                    &[
                        ("async", &["sync", "async"]),
                        ("sync", &["sync"]),
                        ("dirsync", &["dirsync"]),
                        ("atime", &["noatime", "atime"]),
                        ("noatime", &["noatime"]),
                        ("diratime", &["nodiratime", "diratime"]),
                        ("nodiratime", &["nodiratime"]),
                        ("relatime", &["relatime"]),
                        ("norelatime", &["norelatime"]),
                        ("strictatime", &["strictatime"]),
                        ("nostrictatime", &["strictatime", "nostrictatime"]),
                        ("dev", &["nodev", "dev"]),
                        ("nodev", &["nodev"]),
                        ("exec", &["noexec", "exec"]),
                        ("noexec", &["noexec"]),
                        ("suid", &["nosuid", "suid"]),
                        ("nosuid", &["nosuid"]),
                        ("rw", &["ro", "rw"]),
                        ("ro", &["ro"]),
                    ],
                );
            },
            &[
                fact("async", "option /m/async sync", "no"),
                fact("sync", "option /m/sync sync", "yes"),
                fact("dirsync", "option /m/dirsync dirsync", "yes"),
                fact("atime", "option /m/atime noatime", "no"),
                fact("noatime", "option /m/noatime noatime", "yes"),
                fact("diratime", "option /m/diratime nodiratime", "no"),
                fact("nodiratime", "option /m/nodiratime nodiratime", "yes"),
                fact("relatime", "option /m/relatime relatime", "yes"),
                fact("norelatime", "option /m/norelatime noatime", "no"),
                fact("strictatime", "option /m/strictatime relatime; option /m/strictatime noatime", "no\nno"),
                fact("nostrictatime", "option /m/nostrictatime relatime", "yes"),
                fact("dev", "mknod /m/dev/null c 1 3; echo x >/m/dev/null && echo used", "used"),
                fact("nodev", "mknod /m/nodev/null c 1 3; (echo x >/m/nodev/null) 2>&1 | grep -o 'Permission denied'", "Permission denied"),
                fact("exec", "cp /bin/busybox /m/exec; /m/exec/busybox echo ran", "ran"),
                fact("noexec", "cp /bin/busybox /m/noexec; /m/noexec/busybox echo ran 2>&1 | grep -o 'Permission denied'", "Permission denied"),
                fact("suid", "option /m/suid nosuid", "no"),
                fact("nosuid", "option /m/nosuid nosuid", "yes"),
                fact("rw", "touch /m/rw/new && echo written", "written"),
                fact("ro", "touch /m/ro/new 2>&1 | grep -o Read-only", "Read-only"),
            ],
        );
        cases.inside(
            |spec| tmpfs(spec, &[("defaults", &["defaults"])]),
            &[fact(
                "defaults",
                "option /m/defaults rw; option /m/defaults nodev",
                "yes\nno",
            )],
        );
        cases.inside(
            |spec| {
                tmpfs(
                    spec,
                    &[
                        ("iversion", &["iversion"]),
                        ("noiversion", &["iversion", "noiversion"]),
                        ("lazytime", &["lazytime"]),
                        ("nolazytime", &["lazytime", "nolazytime"]),
                        ("loud", &["silent", "loud"]),
                        ("silent", &["silent"]),
                    ],
                );
            },
            &[
                fact("iversion", "option /m/iversion rw", "yes"),
                fact("noiversion", "option /m/noiversion rw", "yes"),
                fact("lazytime", "option /m/lazytime lazytime", "yes"),
                fact("nolazytime", "option /m/nolazytime lazytime", "no"),
                fact("loud", "option /m/loud rw", "yes"),
                fact("silent", "option /m/silent rw", "yes"),
            ],
        );
        cases.inside(
            |spec| {
                tmpfs(
                    spec,
                    &[
                        ("nosymfollow", &["nosymfollow"]),
                        ("symfollow", &["nosymfollow", "symfollow"]),
                    ],
                );
            },
            &[
                fact(
                    "nosymfollow (SHOULD)",
                    "option /m/nosymfollow nosymfollow",
                    "yes",
                ),
                fact(
                    "symfollow (SHOULD)",
                    "option /m/symfollow nosymfollow",
                    "no",
                ),
            ],
        );
        cases.inside(
            |spec| {
                let mounts = spec["mounts"].as_array_mut().expect("mounts are an array");
                let devices = mounts
                    .iter_mut()
                    .find(|mount| mount["destination"] == "/dev");
                let devices = devices.expect("the default has devices");
                push(&mut devices["options"], json!("ro"));
            },
            &[
                fact(
                    "ro of /dev",
                    "option /dev ro; option /dev nosuid",
                    "yes\nyes",
                ),
                fact(
                    "a readonly /dev has its devices",
                    "echo x >/dev/null && echo used",
                    "used",
                ),
                fact(
                    "and what is mounted in it is writable",
                    "touch /dev/shm/new && echo written",
                    "written",
                ),
            ],
        );
        let seed = |name: &str| cases.bundle.path("rootfs/srv").join(name);
        fs::write(seed("seed"), "tide").expect("make a file");
        fs::write(seed("owned"), "").expect("make a file");
        chown(seed("owned"), Some(1000), Some(1001)).expect("make a file");
        let mode = fs::Permissions::from_mode(0o2755);
        fs::set_permissions(seed("owned"), mode).expect("make a file");
        let (device, number) = (seed("null"), ["c", "1", "3"].map(OsStr::new));
        let made = command("mknod", &[&[device.as_os_str()], &number[..]].concat(), b"");
        assert_eq!(made.status, 0, "{made:?}");
        cases.inside(
            |spec| {
                mount(
                    spec,
                    "/srv",
                    "tmpfs",
                    "tmpfs",
                    &["tmpcopyup", "ro", "nodev"],
                );
                for set in ["bounding", "permitted", "effective"] {
                    spec["process"]["capabilities"][set] = json!(["CAP_KILL"]);
                }
            },
            &[
                fact(
                    "tmpcopyup fills a tmpfs with what it covers (MAY)",
                    "cat /srv/seed; type /srv",
                    "tidetmpfs",
                ),
                fact(
                    "tmpcopyup copies what the process might not make",
                    "stat -c '%u %g %a' /srv/owned; test -c /srv/null && echo device",
                    "1000 1001 2755\ndevice",
                ),
                fact(
                    "tmpcopyup and other options",
                    "option /srv ro; option /srv nodev; touch /srv/new 2>/dev/null || echo no",
                    "yes\nyes\nno",
                ),
            ],
        );
    });
}

/// A directory of the host with a mount in it.
struct Tree(PathBuf);

impl Tree {
    fn new(path: PathBuf) -> Self {
        let inner = path.join("inner");
        fs::create_dir_all(&inner).expect("make a directory");
        fs::write(path.join("high"), "").expect("make a file");
        let mounted = command(
            "mount",
            &[
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "deep".as_ref(),
                inner.as_os_str(),
            ],
            b"",
        );
        assert_eq!(mounted.status, 0, "{mounted:?}");
        fs::write(inner.join("deep"), "").expect("make a file");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = command("umount", &[self.0.join("inner")], b"");
    }
}

#[test]
fn bind_mounts() {
    section("config.md#configLinuxMountOptions (bind mounts)", |cases| {
        let tree = Tree::new(cases.bundle.path("tree"));
        let source = tree.path().display().to_string();
        cases.inside(
            |spec| {
                let mounts: [(&str, &[&str]); 16] = [
                    ("bind", &["bind"]),
                    ("rbind", &["rbind"]),
                    ("ro", &["rbind", "ro"]),
                    ("rro", &["rbind", "rro"]),
                    ("nosuid", &["rbind", "nosuid"]),
                    ("nodev", &["rbind", "nodev"]),
                    ("noexec", &["rbind", "noexec"]),
                    ("noatime", &["rbind", "noatime"]),
                    ("private", &["rbind", "private"]),
                    ("rprivate", &["rbind", "rprivate"]),
                    ("shared", &["rbind", "shared"]),
                    ("rshared", &["rbind", "rshared"]),
                    ("slave", &["rbind", "shared", "slave"]),
                    ("rslave", &["rbind", "rslave"]),
                    ("unbindable", &["rbind", "unbindable"]),
                    ("runbindable", &["rbind", "runbindable"]),
                ];
                for (name, options) in mounts {
                    mount(spec, &format!("/m/{name}"), "none", &source, options);
                }
            },
            &[
                fact(
                    "bind shows the directory",
                    "test -e /m/bind/high && echo there",
                    "there",
                ),
                fact(
                    "bind does not show what is mounted in it",
                    "ls /m/bind/inner",
                    "",
                ),
                fact(
                    "bind is writable both ways",
                    "touch /m/bind/new && ls /m/rbind/new",
                    "/m/rbind/new",
                ),
                fact(
                    "rbind shows what is mounted in it",
                    "ls /m/rbind/inner",
                    "deep",
                ),
                fact(
                    "ro",
                    "touch /m/ro/new-ro 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact(
                    "rro (SHOULD)",
                    "touch /m/rro/inner/new-rro 2>&1 | grep -o Read-only",
                    "Read-only",
                ),
                fact("nosuid", "option /m/nosuid nosuid", "yes"),
                fact("nodev", "option /m/nodev nodev", "yes"),
                fact("noexec", "option /m/noexec noexec", "yes"),
                fact("noatime", "option /m/noatime noatime", "yes"),
                fact("private", "propagation /m/private", ""),
                fact("rprivate", "propagation /m/rprivate", ""),
                fact("shared", "propagation /m/shared | grep shared", "shared"),
                fact("rshared", "propagation /m/rshared | grep shared", "shared"),
                fact("slave", "propagation /m/slave | grep -c shared", "0"),
                fact("rslave", "propagation /m/rslave | grep -c shared", "0"),
                fact("unbindable", "propagation /m/unbindable", "unbindable"),
                fact("runbindable", "propagation /m/runbindable", "unbindable"),
            ],
        );
        cases.inside(
            |spec| {
                let mounts: [(&str, &[&str]); 13] = [
                    ("rnoatime", &["rnoatime"]),
                    ("rnodev", &["rnodev"]),
                    ("rnodiratime", &["rnodiratime"]),
                    ("rnoexec", &["rnoexec"]),
                    ("rnosuid", &["rnosuid"]),
                    ("rnosymfollow", &["rnosymfollow"]),
                    ("rro", &["rro"]),
                    ("rrw", &["ro", "rrw"]),
                    ("rsuid", &["nosuid", "rsuid"]),
                    ("rdev", &["nodev", "rdev"]),
                    ("rexec", &["noexec", "rexec"]),
                    ("rstrictatime", &["rstrictatime"]),
                    ("rrelatime", &["rrelatime"]),
                ];
                for (name, options) in mounts {
                    let options = [&["rbind"], options].concat();
                    mount(spec, &format!("/m/{name}"), "none", &source, &options);
                }
            },
            &[
                fact("rnoatime (SHOULD)", "option /m/rnoatime noatime", "yes"),
                fact("rnodev (SHOULD)", "option /m/rnodev nodev", "yes"),
                fact(
                    "rnodiratime (SHOULD)",
                    "option /m/rnodiratime nodiratime",
                    "yes",
                ),
                fact("rnoexec (SHOULD)", "option /m/rnoexec noexec", "yes"),
                fact("rnosuid (SHOULD)", "option /m/rnosuid nosuid", "yes"),
                fact(
                    "rnosymfollow (SHOULD)",
                    "option /m/rnosymfollow nosymfollow",
                    "yes",
                ),
                fact("rro (SHOULD)", "option /m/rro ro", "yes"),
                fact("rrw (SHOULD)", "option /m/rrw ro", "no"),
                fact("rsuid (SHOULD)", "option /m/rsuid nosuid", "no"),
                fact("rdev (SHOULD)", "option /m/rdev nodev", "no"),
                fact("rexec (SHOULD)", "option /m/rexec noexec", "no"),
                fact(
                    "rstrictatime (SHOULD)",
                    "option /m/rstrictatime relatime",
                    "no",
                ),
                fact("rrelatime (SHOULD)", "option /m/rrelatime relatime", "yes"),
            ],
        );
        drop(tree);
    });
}
