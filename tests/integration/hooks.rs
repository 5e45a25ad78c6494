//! Hooks of the OCI configuration: where they run, in which order, and what becomes of failures.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hull_tests::{Finished, Host};
use serde_json::{Value, json};

/// A bundle of the test's own: `ctr run --config`, because `ctr` has no option for hooks.
struct Bundle(tempfile::TempDir);

impl Bundle {
    fn new() -> Self {
        let bundle = Self(tempfile::tempdir_in("/run").expect("make a bundle"));
        let bin = bundle.path("rootfs/bin");
        fs::create_dir_all(&bin).expect("make a bundle");
        for directory in ["proc", "dev", "sys", "run", "tmp"] {
            fs::create_dir(bundle.path("rootfs").join(directory)).expect("make a bundle");
        }
        for program in ["busybox", "sh", "touch", "ls", "false"] {
            fs::copy("/bin/busybox", bin.join(program)).expect("make a bundle");
        }
        bundle
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A script of the host's that runs `text` with the state on its standard input.
    fn hook(&self, name: &str, text: &str) -> Value {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("make a bundle");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make a bundle");
        json!([{ "path": path, "env": ["PATH=/usr/bin:/bin"] }])
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Runs `ls /` in a container with these hooks.
    fn run(&self, host: &Host, hooks: &Value) -> Finished {
        let spec = host.ctr(&["oci", "spec"]);
        let mut spec: Value = serde_json::from_str(spec.output()).expect("make a bundle");
        spec["root"] = json!({ "path": self.path("rootfs") });
        spec["process"]["args"] = json!(["/bin/ls", "/tmp"]);
        spec["hooks"] = hooks.clone();
        let config = self.path("config.json");
        fs::write(&config, spec.to_string()).expect("make a bundle");
        let config = config.display().to_string();
        host.container("hooked")
            .options(&["--config", &config])
            .image(&[])
            .run(&[])
    }
}

fn appends(log: &Path, what: &str) -> String {
    let status = r#"sed 's/.*"status":"\([a-z]*\)".*/\1/'"#;
    format!("echo \"{what} $({status})\" >>{}", log.display())
}

#[test]
fn hooks_run_where_their_programs_are_and_in_order() {
    let host = Host::take();
    let bundle = Bundle::new();
    let log = bundle.path("log");
    let hook = |name: &str| bundle.hook(name, &appends(&log, name));
    let hooks = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "startContainer": [{ "path": "/bin/touch", "args": ["touch", "/tmp/from-hook"] }],
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });

    let run = bundle.run(&host, &hooks);

    assert_eq!(run.output(), "from-hook", "{run:#?}");
    assert_eq!(
        bundle.log(),
        [
            "prestart creating",
            "createRuntime creating",
            "poststart running",
            "poststop stopped"
        ]
    );
}

#[test]
fn a_hook_that_fails_before_the_container_runs_is_the_error() {
    let host = Host::take();
    let bundle = Bundle::new();
    let fails = bundle.hook("fails", "echo no water >&2; exit 3");

    for (hooks, words) in [
        (json!({ "createRuntime": fails }), "no water"),
        (json!({ "createContainer": fails }), "hooks.createContainer"),
    ] {
        let run = bundle.run(&host, &hooks);

        assert_eq!(run.status, 1, "{run:#?}");
        assert!(run.stderr.contains(words), "{run:#?}");
        assert_eq!(run.stdout, "");
    }
}
