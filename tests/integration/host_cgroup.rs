//! The cgroup of the host that a container's machine is in.

use std::fs;
use std::path::Path;

use hull_tests::{Bundle, Host, Process, Systemd};
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
    assert_eq!(weight.trim(), "174");

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

/// The form that Docker, Podman and Kubernetes use where systemd owns the hierarchy.
#[test]
fn a_machine_is_in_the_scope_that_systemd_makes_for_it() {
    let host = Host::take();
    let systemd = Systemd::start();
    let bundle = Bundle::new(&host);
    let mut spec = bundle.spec();
    spec["process"]["args"] = json!(["sleep", "1000"]);
    spec["linux"]["cgroupsPath"] = json!("sea.slice:hull:tide");
    spec["linux"]["resources"]["cpu"] = json!({ "shares": 2048 });
    bundle.write(&spec);
    let folder = bundle.path("").display().to_string();
    let group = systemd.group().join("sea.slice/hull-tide.scope");
    let weight = || {
        let weight = fs::read_to_string(group.join("cpu.weight"));
        weight.expect("the scope is there").trim().to_owned()
    };

    // One that has been there, and one that comes right after it.
    for _ in 0..2 {
        // The container keeps the streams.
        let script = format!("hull-oci run --bundle {folder} --detach tide >{folder}/said 2>&1");
        let started = systemd.run("sh", &["-c", &script]);
        assert_eq!(started.status, 0, "{started:#?}");

        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let names = processes.lines().map(|pid| Process::of(pid).read("comm"));
        let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
        names.sort();
        let expected = ["hull-stand-in", "hull-vmm", "virtiofsd", "virtiofsd"];
        assert_eq!(names, expected);
        assert_eq!(weight(), "174");
        let updated = systemd.run("hull-oci", &["update", "--cpu-share", "1024", "tide"]);
        assert_eq!(updated.status, 0, "{updated:#?}");
        assert_eq!(weight(), "100");

        let deleted = systemd.run("hull-oci", &["delete", "--force", "tide"]);
        assert_eq!(deleted.status, 0, "{deleted:#?}");
        assert!(!group.exists());
    }

    // Without systemd it is said who was asked, and what to do.
    let refused = hull_tests::command("hull-oci", &["run", "--bundle", &folder, "tide"], b"");
    assert_ne!(refused.status, 0);
    for part in ["sea.slice:hull:tide", "systemd", "cgroupfs"] {
        assert!(refused.stderr.contains(part), "{refused:#?}");
    }
}
