//! File systems of the host's block devices.

use std::fs;
use std::path::Path;

use hull_tests::{Container, Finished, Host, command};
use serde_json::Value;

/// A file with an ext4 in it, as a loop device. Detached when dropped.
struct LoopDevice {
    directory: tempfile::TempDir,
    path: String,
}

impl LoopDevice {
    fn with_ext4() -> Self {
        let directory = tempfile::tempdir_in("/run").expect("make a directory");
        let image = directory.path().join("image").display().to_string();
        ok("truncate", &["-s", "32M", &image]);
        ok("mke2fs", &["-q", "-t", "ext4", &image]);
        let path = ok("losetup", &["--find", "--show", &image])
            .output()
            .to_owned();
        Self { directory, path }
    }

    /// Looks at the file system on the host.
    fn mounted<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let at = self.directory.path().join("mounted");
        fs::create_dir_all(&at).expect("make a directory");
        let name = at.display().to_string();
        ok("mount", &[&self.path, &name]);
        let seen = look(&at);
        ok("umount", &[&name]);
        seen
    }

    fn volume_of<'a>(&self, host: &'a Host, name: &'a str, options: &str) -> Container<'a> {
        let mount = format!("type=ext4,src={},dst=/data,options={options}", self.path);
        host.container(name).options(&["--mount", &mount])
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = command("losetup", &["--detach", &self.path], b"");
    }
}

#[track_caller]
fn ok(program: &str, args: &[&str]) -> Finished {
    let done = command(program, args, b"");
    assert_eq!(done.status, 0, "{done:#?}");
    done
}

#[test]
fn a_block_device_is_a_disk_of_the_machine() {
    let host = Host::take();
    let device = LoopDevice::with_ext4();
    let script = "grep ' /data ' /proc/mounts; echo tide >/data/file; mkdir /data/dir";

    let written = device
        .volume_of(&host, "block", "rw")
        .run(&["sh", "-c", script]);
    let on_host = device.mounted(|at| fs::read_to_string(at.join("file")).unwrap());
    let script = "cat /data/file; touch /data/more 2>&1";
    let read = device
        .volume_of(&host, "again", "ro")
        .run(&["sh", "-c", script]);

    let mounted = written.output();
    assert!(mounted.contains(" /data ext4 rw,"), "{written:#?}");
    assert_eq!(on_host, "tide\n");
    assert!(read.stdout.starts_with("tide\n"), "{read:#?}");
    assert!(read.stdout.contains("Read-only file system"), "{read:#?}");
}

#[test]
fn what_its_files_cost_the_hosts_disks_is_counted_for_a_container() {
    let host = Host::take();
    let device = LoopDevice::with_ext4();
    let script = "dd if=/dev/zero of=/data/file bs=1M count=2 conv=fsync";

    let metrics = device.mounted(|at| {
        let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", at.display());
        let container = host.container("counted").options(&["--mount", &mount]);
        let container = container.start(&["sleep", "1000"]);
        let written = container.exec("write", &["sh", "-c", script]);
        assert_eq!(written.status, 0, "{written:#?}");
        let metrics = host.ctr(&["task", "metrics", "--format", "json", "counted"]);
        container.end();
        metrics
    });

    let figures: Value = serde_json::from_str(metrics.output()).expect("it is JSON");
    let devices = figures["io"]["usage"].as_array().expect("there are some");
    // The numbers of loop devices (Linux's devices.txt).
    let on_loop = devices.iter().find(|device| device["major"] == 7);
    let written = on_loop.and_then(|device| device["wbytes"].as_u64());
    assert!(written.is_some_and(|bytes| bytes >= 2 << 20), "{figures:#}");
}

#[test]
fn a_block_device_that_is_in_use_or_none_is_refused() {
    let host = Host::take();
    let device = LoopDevice::with_ext4();

    let busy = device.mounted(|_| device.volume_of(&host, "busy", "rw").run(&["true"]));
    let file = host
        .container("file")
        .options(&["--mount", "type=ext4,src=/etc/hostname,dst=/data"])
        .run(&["true"]);

    assert_eq!(busy.status, 1, "{busy:#?}");
    assert!(busy.stderr.contains("is in use"), "{busy:#?}");
    assert_eq!(file.status, 1, "{file:#?}");
    assert!(file.stderr.contains("is no block device"), "{file:#?}");
}

#[test]
fn a_block_device_given_as_a_device_is_one_of_the_machine() {
    let host = Host::take();
    let device = LoopDevice::with_ext4();
    let path = device.path.as_str();
    // The magic number of ext4's superblock.
    let script = format!(
        "dd if={path} bs=1 skip=1080 count=2 2>/dev/null | xxd -p; \
         echo tide | dd of={path} bs=512 seek=65000 conv=notrunc 2>/dev/null; sync"
    );

    let run = host
        .container("raw")
        .options(&["--device", path])
        .run(&["sh", "-c", &script]);

    assert_eq!(run.output(), "53ef", "{run:#?}");
    let image = fs::read(device.directory.path().join("image")).unwrap();
    assert!(image[65000 * 512..].starts_with(b"tide\n"));
}

#[test]
fn a_privileged_container_has_all_devices_of_its_machine_and_none_of_the_hosts() {
    let host = Host::take();
    let device = LoopDevice::with_ext4();
    let script = format!(
        "mount -t tmpfs none /tmp && echo mounted; ls {} 2>/dev/null; \
         mknod /tmp/image b $(tr : ' ' </sys/block/pmem0/dev) && head -c 1 /tmp/image | wc -c; \
         echo x >/tmp/image || echo no",
        device.path
    );

    let run = host
        .container("privileged")
        .options(&["--privileged"])
        .run(&["sh", "-c", &script]);

    // The guest's own image is read-only as a device, whoever asks.
    assert_eq!(run.output(), "mounted\n1\nno", "{run:#?}");
}

/// As in a pod, whose first container has none of its volumes.
#[test]
fn block_devices_come_and_go_with_the_containers_of_a_machine() {
    let host = Host::take();
    let [own, ext4, raw, next] = [(); 4].map(|()| LoopDevice::with_ext4());
    let anchor = own
        .volume_of(&host, "anchor", "rw")
        .start(&["sleep", "1000"]);
    let joining = |device: &LoopDevice, name| {
        device
            .volume_of(&host, name, "rw")
            .joining(&anchor, &["network"])
    };
    let write = ["sh", "-c", "echo flow >/data/file; sleep 1000"];
    let joiner = joining(&ext4, "joiner")
        .options(&["--device", &raw.path])
        .start(&write);

    let superblock = format!(
        "dd if={} bs=1 skip=1080 count=2 2>/dev/null | xxd -p",
        raw.path
    );
    let seen = joiner.exec(
        "look",
        &["sh", "-c", &format!("cat /data/file; {superblock}")],
    );
    // The machine starts with room for two.
    let refused = joining(&next, "refused").run(&["true"]);
    let busy = command("mount", &[&ext4.path, "/mnt"], b"");
    let own_disk = ["sh", "-c", "echo ebb >/data/file; ls /sys/block"];
    let before = anchor.exec("before", &own_disk);
    joiner.end();
    let after = anchor.exec("after", &own_disk);

    assert_eq!(seen.output(), "flow\n53ef", "{seen:#?}");
    assert_ne!(refused.status, 0);
    assert!(refused.stderr.contains("spare_disks"), "{refused:#?}");
    assert_ne!(busy.status, 0, "the machine has it: {busy:#?}");
    let disks = |listed: &Finished| listed.output().matches("vd").count();
    assert_eq!(
        (disks(&before), disks(&after)),
        (3, 1),
        "{before:#?} {after:#?}"
    );

    // Theirs again, and written, while the machine goes on.
    let on_host = ext4.mounted(|at| fs::read_to_string(at.join("file")).unwrap());
    assert_eq!(on_host, "flow\n");
    let again = joining(&next, "next").start(&write);
    let read = again.exec("read", &["cat", "/data/file"]);
    again.end();
    anchor.end();
    assert_eq!(read.output(), "flow", "{read:#?}");
    assert_eq!(
        own.mounted(|at| fs::read_to_string(at.join("file")).unwrap()),
        "ebb\n"
    );
}
