//! What goes wrong: one clear error through `ctr`, the exit status of runc, nothing left behind
//! (the host's guard looks).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hull_tests::{Finished, Host, IMAGE};

/// Asserts that `ctr` failed as with runc, and that its one message holds each of `words`.
#[track_caller]
fn refused(run: &Finished, words: &[&str]) {
    assert_eq!(run.status, 1, "{run:#?}");
    assert_eq!(run.stdout, "");
    assert_eq!(
        run.stderr.trim().lines().count(),
        1,
        "one message: {}",
        run.stderr
    );
    for word in words {
        assert!(run.stderr.contains(word), "no {word:?} in: {}", run.stderr);
    }
}

#[test]
fn a_missing_kernel_is_named() {
    let host = Host::take();
    let _hidden = host.hide("/usr/lib/hull/vmlinux");

    let run = host.container("no-kernel").run(&["true"]);

    refused(
        &run,
        &[
            "/usr/lib/hull/vmlinux",
            "No such file",
            "/etc/hull/config.toml",
        ],
    );
}

#[test]
fn a_missing_guest_image_is_named() {
    let host = Host::take();
    let _hidden = host.hide("/usr/lib/hull/guest.erofs");

    let run = host.container("no-image").run(&["true"]);

    refused(
        &run,
        &[
            "/usr/lib/hull/guest.erofs",
            "No such file",
            "/etc/hull/config.toml",
        ],
    );
}

#[test]
fn a_missing_kvm_is_named() {
    let host = Host::take();
    let _hidden = host.hide("/dev/kvm");

    let run = host.container("no-kvm").run(&["true"]);

    refused(&run, &["/dev/kvm", "No such file", "hull check"]);
}

#[test]
fn a_host_without_the_vhost_net_that_is_asked_for_is_named() {
    let host = Host::take();
    let _configuration = host.hide("/etc/hull/config.toml");
    fs::write("/etc/hull/config.toml", "vhost_net = true\n").unwrap();
    let device = host.hide("/dev/vhost-net");

    let run = host.container("no-vhost-net").run(&["true"]);
    let check = hull_tests::command::<&str>("hull", &["check"], b"");
    drop(device);
    fs::remove_file("/etc/hull/config.toml").unwrap();

    refused(&run, &["/dev/vhost-net", "No such file", "hull check"]);
    assert_eq!(check.status, 1, "{check:#?}");
    assert!(check.stdout.contains("modprobe vhost_net"), "{check:#?}");
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let host = Host::take();
    let _hidden = host.hide("/usr/lib/hull/vmlinux");
    fs::write("/usr/lib/hull/vmlinux", "not an ELF file").unwrap();

    let run = host.container("bad-kernel").run(&["true"]);
    fs::remove_file("/usr/lib/hull/vmlinux").unwrap();

    refused(&run, &["kernel"]);
}

/// Before it has read what machine is asked for.
#[test]
fn a_vmm_that_ends_at_once_is_named() {
    let host = Host::take();
    let _hidden = host.hide("/usr/lib/hull/hull-vmm");
    std::os::unix::fs::symlink("/usr/bin/false", "/usr/lib/hull/hull-vmm").unwrap();

    let run = host.container("no-machine").run(&["true"]);
    fs::remove_file("/usr/lib/hull/hull-vmm").unwrap();

    refused(&run, &["hull-vmm ended: exit status: 1"]);
}

#[test]
fn a_root_that_does_not_exist_is_named() {
    let host = Host::take();
    let on = |runtime| {
        host.container("no-root")
            .runtime(runtime)
            .options(&["--rootfs"])
            .image(&["/no/such/root"])
    };

    let hull = on(hull_tests::RUNTIME).run(&["true"]);
    let runc = on("io.containerd.runc.v2").run(&["true"]);

    assert_eq!(hull.status, runc.status, "{hull:#?} {runc:#?}");
    refused(&hull, &["/no/such/root"]);
    for made in [&hull, &runc] {
        drop(host.ctr(&["container", "rm", "no-root"]));
        assert_ne!(made.status, 0);
    }
}

#[test]
fn a_command_that_is_not_in_the_image_is_named() {
    let host = Host::take();

    let hull = host.container("no-command").run(&["no-such-command"]);
    let runc = host
        .container("no-command")
        .runtime("io.containerd.runc.v2")
        .run(&["no-such-command"]);

    assert_eq!(hull.status, runc.status, "{hull:#?} {runc:#?}");
    refused(
        &hull,
        &["\"no-such-command\": executable file not found in $PATH"],
    );
}

#[test]
fn a_command_that_may_not_be_executed_is_named() {
    let host = Host::take();

    let hull = host.container("no-exec").run(&["/etc/passwd"]);
    let runc = host
        .container("no-exec")
        .runtime("io.containerd.runc.v2")
        .run(&["/etc/passwd"]);

    assert_eq!(hull.status, runc.status, "{hull:#?} {runc:#?}");
    refused(&hull, &["/etc/passwd", "permission denied"]);
}

#[test]
fn a_corrupt_configuration_is_named() {
    let host = Host::take();
    // containerd writes well-formed bundles, so a runtime of ours breaks one before Hull sees it.
    let shim = "/usr/bin/containerd-shim-corrupt-v2";
    fs::write(
        shim,
        "#!/bin/sh\n[ ! -f config.json ] || echo '{ \"ociVersion\": ' > config.json\n\
         exec containerd-shim-hull-v2 \"$@\"\n",
    )
    .unwrap();
    fs::set_permissions(shim, fs::Permissions::from_mode(0o755)).unwrap();

    let run = host
        .container("corrupt")
        .runtime("io.containerd.corrupt.v2")
        .run(&["true"]);
    fs::remove_file(shim).unwrap();

    refused(&run, &["config.json"]);
}

#[test]
fn an_image_for_another_architecture_is_refused_as_with_runc() {
    let host = Host::take();
    let foreign = if cfg!(target_arch = "x86_64") {
        "linux/arm64"
    } else {
        "linux/amd64"
    };
    let archive = host.shared("foreign.tar").display().to_string();
    let import = host.ctr(&["image", "import", "--platform", foreign, &archive]);
    assert_eq!(import.status, 0, "{import:#?}");
    let on = |runtime| {
        host.container("foreign")
            .runtime(runtime)
            .options(&["--platform", foreign])
            .run(&["/bin/true"])
    };

    let hull = on(hull_tests::RUNTIME);
    let runc = on("io.containerd.runc.v2");
    let again = host.ctr(&[
        "image",
        "import",
        &host.shared("busybox.tar").display().to_string(),
    ]);

    assert_eq!(again.status, 0, "bring back {IMAGE}: {again:#?}");
    assert_eq!(hull.status, runc.status, "{hull:#?} {runc:#?}");
    assert!(hull.stderr.contains("exec format error"), "{hull:#?}");
}
