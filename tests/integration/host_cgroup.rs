//! The cgroup of the host that a container's machine is in.

use std::fs;
use std::path::Path;

use hull_tests::{Bundle, Host, Process};
use serde_json::json;

/// Everything of the machine, and what stands for the container: there the host counts and weighs it.
#[test]
fn a_machine_is_in_the_group_that_its_containers_configuration_names() {
    let host = Host::take();
    let container = host
        .container("grouped")
        .options(&["--cpu-shares", "2048"])
        .start(&["sleep", "1000"]);

    let group = Path::new("/sys/fs/cgroup/default/grouped");
    let vmm = container.vmm();
    let stand_in = Process::of(&container.pid().to_string());
    for process in [&vmm, &stand_in] {
        assert_eq!(process.read("cgroup").trim(), "0::/default/grouped");
    }
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    // hull-vmm, virtiofsd with a process of its own, and the stand-in.
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let weight = fs::read_to_string(group.join("cpu.weight")).unwrap();
    assert_eq!(weight.trim(), "79");

    container.end();
    assert!(!group.exists());
}

#[test]
fn a_group_that_leads_elsewhere_is_refused_by_its_field() {
    let host = Host::take();
    let bundle = Bundle::new(&host);
    let mut spec = bundle.spec();
    spec["linux"]["cgroupsPath"] = json!("/default/../../sea");

    let run = bundle.container(&host, "elsewhere", &spec).run(&[]);

    assert_ne!(run.status, 0);
    assert!(run.stderr.contains("linux.cgroupsPath"), "{run:#?}");
    assert!(!Path::new("/sys/fs/cgroup/sea").exists());
}
