//! A systemd to ask for scopes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::{Finished, Running, command};
use crate::wait;

/// Its hierarchy.
const GROUP: &str = "/sys/fs/cgroup/of-a-test";

/// systemd as a user's: it makes scopes as the system's does, in a hierarchy of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct Systemd {
    folder: tempfile::TempDir,
    _running: Running,
}

impl Systemd {
    /// Starts it, with a bus.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir_in("/run").expect("root may make that");
        // It joins its bus once that is a unit of its own that runs.
        let units = folder.path().join("systemd/user");
        fs::create_dir_all(&units).expect("root may make that");
        for (name, text) in [
            ("default.target", "[Unit]\nWants=dbus.service\n"),
            ("dbus.socket", "[Socket]\nListenStream=%t/bus\n"),
            (
                "dbus.service",
                "[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon \
                 --session --address=systemd: --nofork --nopidfile --systemd-activation\n",
            ),
        ] {
            fs::write(units.join(name), text).expect("root may make that");
        }
        // What it knows a host of systemd's by.
        fs::create_dir_all("/run/systemd/system").expect("root may make that");
        fs::create_dir(GROUP).expect("root may make that");
        let script = format!("echo 0 >{GROUP}/cgroup.procs && exec /lib/systemd/systemd --user");
        let running = Running::start(
            Command::new("sh")
                .args(["-c", &script])
                .env("XDG_RUNTIME_DIR", folder.path())
                .env("XDG_CONFIG_HOME", folder.path()),
            Stdio::null(),
        );
        let systemd = Self {
            folder,
            _running: running,
        };
        wait::until("systemd is at its bus", || {
            let asked = systemd.run("busctl", &["status", "org.freedesktop.systemd1"]);
            (asked.status == 0).then_some(())
        });
        systemd
    }

    /// Runs a program for which this is the system's.
    #[must_use]
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        let bus = format!("unix:path={}", self.folder.path().join("bus").display());
        let bus = format!("DBUS_SYSTEM_BUS_ADDRESS={bus}");
        command("env", &[&[&bus, program], args].concat(), b"")
    }

    /// The hierarchy that it has.
    #[must_use]
    pub fn group(&self) -> &Path {
        Path::new(GROUP)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // All that it has started, and its groups, innermost first.
        let _ = fs::write(format!("{GROUP}/cgroup.kill"), "1");
        wait::until("systemd is gone", || {
            let script = format!("find {GROUP} -depth -type d -exec rmdir {{}} +");
            let removed = command("sh", &["-c", &script], b"");
            (removed.status == 0).then_some(())
        });
        let _ = fs::remove_dir_all("/run/systemd");
    }
}
