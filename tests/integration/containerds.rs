//! A host with two containerds, as where dockerd has one of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hull_tests::{Finished, Host, IMAGE, RUNTIME, Running, command, wait};

/// A containerd beside the host's, with the test image. Gone when dropped.
struct Second {
    _daemon: Running,
    folder: tempfile::TempDir,
}

impl Second {
    fn start(host: &Host) -> Self {
        let folder = tempfile::tempdir_in("/run").expect("root may make one");
        let path = |name: &str| folder.path().join(name);
        let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(path("config.toml"), config).expect("write its configuration");
        let mut daemon = Command::new("containerd");
        for (option, name) in [
            ("--config", "config.toml"),
            ("--root", "root"),
            ("--state", "state"),
            ("--address", "containerd.sock"),
        ] {
            daemon.arg(option).arg(path(name));
        }
        let daemon = Running::start(daemon.stderr(Stdio::null()), Stdio::null());
        let second = Self {
            _daemon: daemon,
            folder,
        };
        wait::until("the second containerd answers", || {
            (second.ctr(&["version"]).status == 0).then_some(())
        });
        let image = host.shared("busybox.tar").display().to_string();
        second.ctr(&["image", "import", &image]).output();
        second
    }

    fn address(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    fn ctr(&self, args: &[&str]) -> Finished {
        let address = self.address().display().to_string();
        command("ctr", &[&["--address", &address], args].concat(), b"")
    }
}

#[test]
fn a_container_is_in_nobodys_hands_but_its_own_containerds() {
    let host = Host::take();
    let second = Second::start(&host);
    let container = host.container("tide").start(&["sleep", "1000"]);

    let run = ["run", "--rm", "--runtime", RUNTIME, IMAGE, "tide", "true"];
    let refused = second.ctr(&run);

    assert_eq!(refused.status, 1, "{refused:#?}");
    for word in [
        "default/tide",
        "in use",
        "(/run/containerd/containerd.sock)",
    ] {
        assert!(refused.stderr.contains(word), "no {word:?}: {refused:#?}");
    }
    assert_eq!(container.exec("look", &["echo", "here"]).output(), "here");
    let run = ["run", "--rm", "--runtime", RUNTIME, IMAGE, "ebb", "true"];
    assert_eq!(second.ctr(&run).status, 0);
    assert_eq!(container.exec("again", &["echo", "here"]).output(), "here");
    container.end();
}
