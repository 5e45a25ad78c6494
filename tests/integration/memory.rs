//! A container's memory: the machine grows with what is used of it.

use std::fs;

use hull_tests::{Hidden, Host, wait};

const CONFIG: &str = "/etc/hull/config.toml";

/// Has machines boot with 128 MiB, until it is dropped: the less memory is touched, the sooner an emulated
/// machine is done.
fn small(host: &Host) -> Hidden {
    let hidden = host.hide(CONFIG);
    fs::write(CONFIG, "memory_mib = 128\nvcpus = 1\n").expect("write the configuration");
    hidden
}

/// Fills a buffer of so many MiB, and tells how that ended.
fn fill(mib: u32) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null; echo {mib} $?")
}

#[test]
fn a_container_without_a_limit_uses_four_times_what_its_machine_boots_with_and_gives_it_back() {
    let host = Host::take();
    let _small = small(&host);
    let container = host.container("grows").start(&["sleep", "1000"]);
    let machine = container.vmm();
    let before = machine.guest_memory();

    let filled = container.exec("fill", &["sh", "-c", &fill(512)]);

    assert_eq!(filled.output(), "512 0");
    assert!(before < 128 << 20, "{} MiB", before >> 20);
    wait::until("the host has its memory back", || {
        (machine.guest_memory() < 300 << 20).then_some(())
    });
    container.end();
}

#[test]
fn a_container_has_its_limit_and_is_killed_beyond_it() {
    let host = Host::take();
    let _small = small(&host);
    let limit = (200 << 20).to_string();
    let limited = host
        .container("limited")
        .options(&["--memory-limit", &limit]);

    let script = format!(
        "{}; {}; awk '/MemTotal/ {{ print ($2 > 200 * 1024) }}' /proc/meminfo",
        fill(160),
        fill(260)
    );
    let run = limited.run(&["sh", "-c", &script]);

    assert_eq!(run.output(), "160 0\n260 137\n1");
}
