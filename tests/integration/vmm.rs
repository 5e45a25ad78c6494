//! `hull-vmm` without shim and agent: boot, devices, ends.

use std::env::consts::ARCH;
use std::fs;
use std::io::{Read, Seek, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use hull_tests::{Host, Machine, Process, Tap, wait};
use vmm_control::{Event, ExitReason, Request};

#[test]
fn a_guest_boots_and_its_reboot_ends_the_machine() {
    let _host = Host::take();

    let (reason, counters, console) = Machine::with_script("uname -sm").boot().finish();

    assert_eq!(reason, ExitReason::Reset, "{console}");
    let system = format!("Linux {ARCH}");
    assert!(
        console.contains(&system) && console.contains("THE-END"),
        "{console}"
    );
    assert!(
        counters.boot_to_run_us > 0 && counters.exits_io + counters.exits_mmio > 0,
        "{counters:?}"
    );
}

#[test]
fn every_vcpu_and_all_memory_is_there() {
    let _host = Host::take();

    let script = "nproc; free -m | awk '/Mem/ { print \"MiB\", ($2 > 3700) }'";
    let (_, _, console) = Machine::with_script(script).size(2, 4096).boot().finish();

    assert!(console.contains("2\r\nMiB 1"), "{console}");
}

/// Its kernel has 20 MiB or so, and what Linux fills early is as much again.
#[test]
fn what_is_filled_first_is_in_large_pages_of_the_hosts() {
    let _host = Host::take();
    let vm = Machine::with_script("echo ready; sleep 1000").boot();
    vm.wait_for("ready");
    let maps = Process::of(&vm.pid().to_string()).read("smaps");
    let large = maps
        .lines()
        .filter_map(|line| line.strip_prefix("ShmemPmdMapped:"));
    let kib = large.map(|rest| rest.trim().trim_end_matches(" kB").parse::<u32>().unwrap());
    let mib = kib.sum::<u32>() >> 10;
    assert!(mib >= 16, "{mib} MiB in large pages: {maps}");
}

/// The guest starts with 128 MiB, fills a file of 130 in memory, and gives it back, but for a few blocks in
/// which its kernel may have put something of its own.
#[test]
fn memory_is_plugged_when_it_is_asked_for_and_comes_back() {
    let _host = Host::take();
    let script = "mib() { awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; }
        first=$(mib); echo at first $((first < 130))
        until [ $(mib) -ge $((first + 127)) ]; do sleep 0.1; done; echo plugged
        mount -t tmpfs -o size=90% tmp /tmp
        head -c 136314880 /dev/zero >/tmp/file
        echo filled $(wc -c </tmp/file)
        rm /tmp/file; echo emptied
        until [ $(mib) -le $((first + 40)) ]; do sleep 0.1; done
        echo unplugged; sleep 1000";
    let machine = Machine::with_script(script).size(1, 128);
    let vm = machine.elastic(4096).boot();
    vm.wait_for("at first 1");
    let before = vm.resident();

    vm.request(&Request::Memory { mib: 128 });
    vm.wait_for("plugged");
    vm.wait_for("filled 136314880");
    let filled = vm.counters();
    let grown = vm.resident();
    vm.request(&Request::Memory { mib: 0 });
    vm.wait_for("unplugged");

    let size = 128 << 20;
    assert_eq!(
        (filled.memory_requested, filled.memory_plugged),
        (size, size)
    );
    assert!(before < 100 << 20, "{} MiB", before >> 20);
    assert!(grown > 130 << 20, "{} MiB", grown >> 20);
    wait::until("the host has its memory back", || {
        let counters = vm.counters();
        (counters.memory_plugged <= 40 << 20 && vm.resident() < 110 << 20).then_some(())
    });
}

#[test]
fn a_machine_has_a_device_on_every_interrupt() {
    let _host = Host::take();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();

    // With the entropy and the socket device 21; the memory device is the last.
    let mut machine = Machine::with_script(
        "ls /sys/block | grep -c vd
        until [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -gt 300000 ]; do sleep 0.1; done
        cat /proc/interrupts",
    );
    for number in 0..17 {
        machine = machine.disk(&disk, true, &format!("disk{number}"));
    }
    let vm = machine.elastic(1024).boot();
    vm.request(&Request::Memory { mib: 128 });
    let (_, _, console) = vm.finish();

    assert!(
        console.contains("17\r\n") && console.contains("THE-END"),
        "{console}"
    );
}

/// Guests wrote to an image that was theirs to read, and so to all that have it.
#[test]
fn cve_2026_24834_cve_2020_2025_a_file_is_read_in_place_and_no_store_reaches_it() {
    let _host = Host::take();
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all(b"high").unwrap();
    file.seek(std::io::SeekFrom::Start((4 << 20) - 4)).unwrap();
    file.write_all(b"tide").unwrap();

    // As the agent has it, and then by a guest that does not care.
    let script = "head -c 4 /dev/pmem0; tail -c 4 /dev/pmem0; blockdev --getsize64 /dev/pmem0
        echo 1 >/sys/bus/nd/devices/region0/read_only
        printf ebb | dd of=/dev/pmem0 conv=fsync; echo status $?
        echo 0 >/sys/bus/nd/devices/region0/read_only
        printf ebb | dd of=/dev/pmem0 conv=fsync";
    let (_, _, console) = Machine::with_script(script).pmem(&file).boot().finish();

    assert!(
        console.contains("hightide4194304") && console.contains("status 1"),
        "{console}"
    );
    let mut start = [1; 4];
    file.rewind().unwrap();
    file.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"high", "{console}");
}

#[test]
fn what_is_written_to_a_disk_is_in_its_file() {
    let _host = Host::take();
    let mut disk = tempfile::tempfile().unwrap();
    disk.set_len(64 << 20).unwrap();
    disk.write_all(b"high").unwrap();

    let script = "head -c 4 /dev/vda; cat /sys/block/vda/serial; blockdev --getsize64 /dev/vda
        printf tide | dd of=/dev/vda bs=512 seek=131071 conv=fsync 2>&1";
    let (_, counters, console) = Machine::with_script(script)
        .disk(&disk, false, "kelp")
        .boot()
        .finish();

    assert!(
        console.contains("highkelp") && console.contains("67108864"),
        "{console}"
    );
    let mut end = [0; 4];
    disk.seek(std::io::SeekFrom::Start((64 << 20) - 512))
        .unwrap();
    disk.read_exact(&mut end).unwrap();
    assert_eq!(&end, b"tide", "{console}");
    // A write takes a page of the guest's cache.
    let counted = (counters.devices.iter())
        .find(|device| device.device_id == 2)
        .unwrap();
    assert!(
        counted.bytes_to_guest >= 4096 && counted.bytes_from_guest == 4096,
        "{counters:?}"
    );
    assert_eq!((counted.errors, counted.failures), (0, 0), "{counters:?}");
}

#[test]
fn a_read_only_disk_stays_as_it_is_although_its_file_is_writable() {
    let _host = Host::take();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();

    let script = "cat /sys/block/vda/ro; printf tide | dd of=/dev/vda conv=fsync; echo status $?";
    let (_, _, console) = Machine::with_script(script)
        .disk(&disk, true, "")
        .boot()
        .finish();

    assert!(
        console.contains("1\r\n") && console.contains("status 1"),
        "{console}"
    );
    let mut start = [1; 4];
    (&disk).rewind().unwrap();
    (&disk).read_exact(&mut start).unwrap();
    assert_eq!(start, [0; 4]);
}

#[test]
fn a_disk_in_an_unknown_format_is_raw_bytes() {
    // GHSA-jmr4-g2hv-mjj6: a guest wrote a qcow2 header that named a file of the host.
    let _host = Host::take();
    let mut disk = tempfile::tempfile().unwrap();
    disk.write_all(b"QFI\xfb\x00\x00\x00\x03").unwrap();
    disk.set_len(1 << 20).unwrap();

    let script = "head -c 3 /dev/vda; blockdev --getsize64 /dev/vda";
    let (_, _, console) = Machine::with_script(script)
        .disk(&disk, false, "")
        .boot()
        .finish();

    assert!(console.contains("QFI1048576"), "{console}");
}

#[test]
fn the_guest_has_entropy_from_the_host() {
    let _host = Host::take();

    let script = "cat /sys/class/misc/hw_random/rng_current; head -c 8 /dev/hwrng | wc -c";
    let (_, _, console) = Machine::with_script(script).boot().finish();

    assert!(
        console.contains("virtio_rng.0") && console.contains("\r\n8\r\n"),
        "{console}"
    );
}

#[test]
fn packets_cross_a_tap_both_ways() {
    let _host = Host::take();
    let tap = Tap::up("hulltest0", "192.0.2.1/24");
    let name = tap.name().to_owned();

    let script = "cat /sys/class/net/eth0/address
        ip address add 192.0.2.2/24 dev eth0; ip link set eth0 up
        ping -c 3 -W 10 -s 1400 192.0.2.1";
    let machine = Machine::with_script(script).nic(tap, "02:00:00:00:00:07".parse().unwrap());
    let (_, _, console) = machine.boot().finish();

    assert!(console.contains("02:00:00:00:00:07"), "{console}");
    assert!(console.contains("3 packets received"), "{name}: {console}");
}

/// Both kernels choose the queues: ours by the flow, the guest's by the processor.
#[test]
fn a_card_of_two_pairs_moves_frames_by_both_takes_another_tap_and_is_reset() {
    let _host = Host::take();
    let tap = Tap::with_queues("hulltest0", "192.0.2.1/24", 2);
    let listener = TcpListener::bind("192.0.2.1:7777").unwrap();
    let script = "echo queues: $(ls /sys/class/net/eth0/queues)
        ip address add 192.0.2.2/24 dev eth0; ip address add 198.51.100.2/24 dev eth0
        ip link set eth0 up
        for processor in 1 2 1 2 1 2; do
            head -c 1000000 /dev/zero | taskset $processor nc 192.0.2.1 7777 | wc -c &
        done
        wait; echo first
        until taskset 2 ping -c 1 -W 1 198.51.100.1; do :; done; echo second
        cd /sys/bus/virtio/drivers/virtio_net; echo virtio* >unbind; echo unbound; sleep 1000";
    let machine = Machine::with_script(script).size(2, 256);
    let vm = (machine.nic(tap, "02:00:00:00:00:07".parse().unwrap())).boot();
    let clients = std::iter::repeat_with(move || listener.accept());
    thread::spawn(|| {
        for (mut stream, _) in clients.take(6).flatten() {
            thread::spawn(move || {
                let mut received = vec![0; 1_000_000];
                let came = stream.read_exact(&mut received);
                came.and_then(|()| stream.write_all(&received))
            });
        }
    });
    vm.wait_for("first");

    let console = vm.console();
    assert!(console.contains("queues: rx-0 rx-1 tx-0 tx-1"), "{console}");
    assert_eq!(console.matches("1000000\r\n").count(), 6, "{console}");
    let hull = Process::of(&vm.pid().to_string());
    let waits = hull.of_each_thread("voluntary_ctxt_switches");
    let its: u32 = waits["card 2"].parse().unwrap();
    assert!(its > 50, "the second pair has moved nothing: {waits:?}");
    assert_eq!(queues_of("hulltest0"), 2);

    vm.plug(0, Tap::with_queues("hulltest1", "198.51.100.1/24", 2));
    vm.wait_for("second");
    wait::until("the first tap is gone", || {
        (!Path::new("/sys/class/net/hulltest0").exists()).then_some(())
    });
    assert_eq!(queues_of("hulltest1"), 2);
    // Nobody reads the second one any more.
    vm.wait_for("unbound");
    assert_eq!(queues_of("hulltest1"), 1);

    vm.request(&Request::Stop);
    assert_eq!(vm.finish().0, ExitReason::Stopped);
}

/// How many queues of a tap somebody is attached to.
fn queues_of(tap: &str) -> usize {
    let queues = fs::read_dir(format!("/sys/class/net/{tap}/queues")).expect("the tap is there");
    let names = queues.flatten().map(|queue| queue.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("tx-"))
        .count()
}

#[test]
fn a_tap_with_fewer_queues_than_the_card_has_pairs_ends_the_machine_and_says_why() {
    let _host = Host::take();
    let tap = Tap::with_queues("hulltest0", "192.0.2.1/24", 2);
    let machine = Machine::with_script("echo ready; sleep 1000").size(2, 256);
    let vm = (machine.nic(tap, "02:00:00:00:00:07".parse().unwrap())).boot();
    vm.wait_for("ready");

    vm.plug(0, Tap::up("hulltest1", "198.51.100.1/24"));

    let ExitReason::Failed(why) = vm.finish().0 else {
        panic!("the machine goes on");
    };
    assert!(why.contains("2 pairs of queues"), "{why}");
}

/// Neither the frames nor what driver and device tell each other of them.
#[test]
fn with_vhost_net_nothing_of_the_traffic_passes_the_vmm() {
    let _host = Host::take();
    let tap = Tap::up("hulltest0", "192.0.2.1/24");
    let script = "ip address add 192.0.2.2/24 dev eth0; ip link set eth0 up
        ping -c 1 -W 10 192.0.2.1; echo begin
        ping -c 30 -i 0.1 -W 10 -s 1400 192.0.2.1; echo end; sleep 1000";
    let machine = Machine::with_script(script).nic(tap, "02:00:00:00:00:07".parse().unwrap());
    let vm = machine.vhost_net().boot();
    vm.wait_for("begin");
    let before = vm.counters();
    vm.wait_for("end");
    let after = vm.counters();

    let console = vm.console();
    assert!(console.contains("30 packets received"), "{console}");
    let notified = after.notifications - before.notifications;
    assert!(notified < 10, "{notified}: {before:?}, {after:?}");
}

/// The kernel counts a tap's frame as sent when somebody takes it.
#[test]
fn with_vhost_net_a_card_changes_its_tap_and_loses_it_to_a_reset() {
    let _host = Host::take();
    let signal = tempfile::tempfile().unwrap();
    signal.set_len(4096).unwrap();
    let script = "ip address add 192.0.2.2/24 dev eth0; ip address add 198.51.100.2/24 dev eth0
        ip link set eth0 up
        ping -c 1 -W 10 192.0.2.1 && echo first
        until ping -c 1 -W 1 198.51.100.1; do :; done; echo second
        cd /sys/bus/virtio/drivers/virtio_net; card=$(echo virtio*)
        echo $card >unbind; echo unbound
        until [ \"$(blockdev --flushbufs /dev/vda; head -c 2 /dev/vda)\" = on ]; do sleep 0.1; done
        echo $card >bind
        ip address add 198.51.100.2/24 dev eth0; ip link set eth0 up
        ping -c 1 -W 10 198.51.100.1 && echo third";
    let mac = "02:00:00:00:00:07".parse().unwrap();
    let machine = Machine::with_script(script).disk(&signal, true, "signal");
    let machine = machine.nic(Tap::up("hulltest0", "192.0.2.1/24"), mac);
    let vm = machine.vhost_net().boot();
    vm.wait_for("first");

    vm.plug(0, Tap::up("hulltest1", "198.51.100.1/24"));
    vm.wait_for("second");
    // Nobody has the first any more, the kernel's part included.
    wait::until("the first tap is gone", || {
        (!Path::new("/sys/class/net/hulltest0").exists()).then_some(())
    });

    vm.wait_for("unbound");
    let taken = || fs::read_to_string("/sys/class/net/hulltest1/statistics/tx_packets").unwrap();
    let before = taken();
    let ping = ["-c", "3", "-i", "0.2", "-W", "1", "198.51.100.2"];
    let lost = hull_tests::command("ping", &ping, b"");
    assert_ne!(lost.status, 0, "{lost:?}");
    assert_eq!(taken(), before);

    // At its beginning, wherever hull-vmm, which has the same descriptor, has left the position.
    signal.write_all_at(b"on", 0).unwrap();
    vm.wait_for("third");
    assert_eq!(vm.finish().0, ExitReason::Reset);
}

#[test]
fn a_panic_ends_the_machine_and_has_a_reason() {
    let _host = Host::take();

    let script = "echo c >/proc/sysrq-trigger";
    let (reason, _, console) = Machine::with_script(script).boot().finish();

    let why = ExitReason::Panicked("sysrq triggered crash".to_owned());
    assert_eq!(reason, why, "{console}");
}

#[test]
fn the_end_of_the_first_process_ends_the_machine_and_has_its_code() {
    let _host = Host::take();

    let (reason, _, console) = Machine::with_script("exit 7").boot().finish();

    assert_eq!(reason, ExitReason::InitEnded(7), "{console}");
}

// Each architecture has an end of its own.
#[cfg(target_arch = "aarch64")]
#[test]
fn a_guest_that_turns_itself_off_ends_the_machine() {
    let _host = Host::take();

    let (reason, _, console) = Machine::with_script("poweroff -f").boot().finish();

    assert_eq!(reason, ExitReason::PoweredOff, "{console}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_triple_fault_ends_the_machine_and_is_named() {
    let _host = Host::take();

    let (reason, _, console) = Machine::with_script("true")
        .cmdline("reboot=t")
        .boot()
        .finish();

    assert_eq!(reason, ExitReason::TripleFault, "{console}");
}

#[test]
fn a_stop_request_ends_the_machine_at_once() {
    let _host = Host::take();
    let vm = Machine::with_script("echo ready; sleep 1000").boot();
    assert_eq!(vm.event(), Some(Event::Started));
    vm.wait_for("ready");

    vm.request(&Request::Counters);
    assert!(matches!(vm.event(), Some(Event::Counters(counters)) if counters.exits_mmio > 0));
    vm.request(&Request::Stop);

    assert_eq!(vm.finish().0, ExitReason::Stopped);
}

#[test]
fn a_machine_ends_with_its_shim() {
    let _host = Host::take();
    let vm = Machine::with_script("echo ready; while :; do :; done").boot();
    vm.wait_for("ready");

    vm.abandon();
}

#[test]
fn no_console_is_there_unless_asked_for() {
    let _host = Host::take();

    // Every test above has a console; a container's machine has none (docs/vmm.md).
    let run = _host.container("console").run(&["cat", "/proc/consoles"]);

    assert_eq!((run.status, run.stdout.as_str()), (0, ""), "{run:?}");
}
