//! A container's processors: those of the host, though its machine boots with one.

use std::fs;

use hull_tests::{Bundle, Host};
use serde_json::json;

const CONFIG: &str = "/etc/hull/config.toml";

#[test]
fn a_container_has_as_many_processors_as_the_host_and_may_be_bound_to_some() {
    let host = Host::take();
    let hosts = std::thread::available_parallelism().unwrap().get();
    assert!(
        hosts > 1,
        "the test host has one processor, which shows nothing"
    );
    // The test host's configuration says 1.
    let _hidden = host.hide(CONFIG);
    fs::write(CONFIG, "").unwrap();
    let look = [
        "sh",
        "-c",
        "nproc; grep -c ^processor /proc/cpuinfo; grep Cpus_allowed_list /proc/self/status",
    ];

    let all = host.container("all").run(&look);
    let last = (hosts - 1).to_string();
    let bundle = Bundle::new(&host);
    let mut spec = bundle.spec();
    spec["linux"]["resources"]["cpu"] = json!({ "cpus": last });
    spec["process"]["args"] = json!(look);
    let bound = bundle.container(&host, "bound", &spec).run(&[]);
    fs::remove_file(CONFIG).unwrap();

    let words = |lines: &str| {
        lines
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let expected = format!("{hosts} {hosts} Cpus_allowed_list: 0-{last}");
    assert_eq!(words(all.output()), words(&expected), "{all:#?}");
    let expected = format!("1 {hosts} Cpus_allowed_list: {last}");
    assert_eq!(words(bound.output()), words(&expected), "{bound:#?}");
}
