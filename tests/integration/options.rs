//! Options of the runtime, which containerd's clients can give.

use std::fs;
use std::path::{Path, PathBuf};

use hull_tests::{Host, command, wait};

/// A configuration with a state folder of its own, and the option of `ctr run` that names it. Gone when dropped.
struct Configuration {
    folder: tempfile::TempDir,
}

impl Configuration {
    fn new() -> Self {
        let folder = tempfile::tempdir_in("/run").expect("root may make one");
        let new = Self { folder };
        let text = format!("state = {:?}\nvcpus = 1\n", new.state());
        fs::write(new.path(), text).expect("write the configuration");
        new
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("other.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    #[track_caller]
    fn wait_until_state_is_empty(&self) {
        wait::until("what the machine had is gone", || {
            let is_left = self.state().join("default").exists();
            (!is_left).then_some(())
        });
    }

    fn option(&self) -> String {
        format!("--runtime-config-path={}", self.path().display())
    }
}

#[test]
fn the_configuration_that_they_name_is_that_of_the_machine_and_of_who_joins_it() {
    let host = Host::take();
    let configuration = Configuration::new();
    let option = configuration.option();
    let first = host.container("first").options(&[&option]);
    let first = first.start(&["sleep", "1000"]);

    assert!(configuration.state().join("default/first").is_dir());
    assert!(!Path::new("/run/hull/default/first").exists());
    assert_eq!(first.exec("count", &["nproc"]).output(), "1");
    let second = host.container("second").options(&[&option]);
    let second = second.joining(&first, &["ipc"]);
    let compared = second.run(&["true"]);
    assert_eq!(compared.status, 0, "{compared:#?}");

    first.end();
    configuration.wait_until_state_is_empty();
}

/// containerd's `delete` is told no options.
#[test]
fn what_a_killed_shim_leaves_is_found_where_its_configuration_has_put_it() {
    let host = Host::take();
    let configuration = Configuration::new();
    let container = host
        .container("orphan")
        .options(&[&configuration.option()])
        .start(&["sleep", "1000"]);
    fs::remove_file(configuration.path()).unwrap();

    let shims = ["-KILL", "-f", "containerd-shim-hull-v2.*-id orphan"];
    assert_eq!(command("pkill", &shims, b"").status, 0);

    container.wait_until_given_up();
    assert_eq!(host.ctr(&["container", "rm", "orphan"]).status, 0);
    configuration.wait_until_state_is_empty();
}

#[test]
fn a_configuration_that_is_not_there_or_not_found_from_everywhere_is_refused() {
    let host = Host::take();
    for (path, word) in [("/no/such.toml", "No such file"), ("such.toml", "absolute")] {
        let option = format!("--runtime-config-path={path}");
        let refused = host.container("lost").options(&[&option]).run(&["true"]);

        assert_eq!(refused.status, 1, "{refused:#?}");
        for word in [path, "ConfigPath", word] {
            assert!(refused.stderr.contains(word), "{refused:#?}");
        }
    }
}
