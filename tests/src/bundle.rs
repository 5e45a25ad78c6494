//! A bundle of a test's own: what `ctr run --config` takes, for what `ctr` has no option.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::command::command;
use crate::container::Container;
use crate::host::Host;

/// A root file system with busybox, and a configuration to start from.
#[derive(Debug)]
pub struct Bundle {
    directory: tempfile::TempDir,
    default: Value,
}

impl Bundle {
    /// Makes one; its configuration is what `ctr oci spec` prints, with this root.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let directory = tempfile::tempdir_in("/run").expect("make a bundle");
        // Who is root in a user namespace has to get at it.
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), mode).expect("make a bundle");
        let root = directory.path().join("rootfs");
        let bin = root.join("bin");
        fs::create_dir_all(&bin).expect("make a bundle");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("make a bundle");
        let applets = command("/bin/busybox", &["--list"], b"");
        for applet in applets.output().lines().filter(|&name| name != "busybox") {
            symlink("busybox", bin.join(applet)).expect("make a bundle");
        }
        for name in ["proc", "dev", "sys", "run", "tmp", "srv"] {
            fs::create_dir(root.join(name)).expect("make a bundle");
        }
        let everyone = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(root.join("tmp"), everyone).expect("make a bundle");

        let spec = host.ctr(&["oci", "spec"]);
        let mut default: Value = serde_json::from_str(spec.output()).expect("ctr prints JSON");
        default["root"] = json!({ "path": root });
        default["process"]["env"] = json!(["PATH=/bin"]);
        // Without a container's name, `ctr` names the group that all are in.
        default["linux"]["cgroupsPath"] = json!("/default/of-a-bundle");
        Self { directory, default }
    }

    /// A file of the bundle, whether it exists or not.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The configuration to change.
    #[must_use]
    pub fn spec(&self) -> Value {
        self.default.clone()
    }

    /// Writes its configuration.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn write(&self, spec: &Value) {
        fs::write(self.path("config.json"), spec.to_string()).expect("write a configuration");
    }

    /// A hook that runs `script` on the host, with the state on its standard input.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn hook(&self, name: &str, script: &str) -> Value {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write a hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("write a hook");
        json!({ "path": path, "env": ["PATH=/usr/bin:/bin"] })
    }

    /// The lines that hooks have written to the file `log`, which is emptied.
    #[must_use]
    pub fn take_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log"));
        log.lines().map(str::to_owned).collect()
    }

    /// A container with the given configuration.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn container<'a>(&self, host: &'a Host, name: &'a str, spec: &Value) -> Container<'a> {
        self.write(spec);
        let config = self.path("config.json");
        host.container(name)
            .options(&["--config", &config.display().to_string()])
            .image(&[])
    }
}
