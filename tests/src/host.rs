//! The host a test has to itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::command::{Finished, command};
use crate::container::{Container, IMAGE};
use crate::leftovers::Leftovers;
use crate::wait;

static HOST: Mutex<()> = Mutex::new(());
static IMAGES: OnceLock<()> = OnceLock::new();

/// Where `tests/integration/run` puts the images.
const SHARE: &str = "/mnt/share";

/// Where the test host keeps containerd's log.
const LOG: &str = "/var/log/containerd.log";

/// The host: containerd answers, Hull is installed, the test image is imported.
///
/// One test at a time has it. When the test lets go of it, nothing of Hull's may be left: no
/// process, mount, tap, cgroup or file.
#[derive(Debug)]
pub struct Host {
    _turn: MutexGuard<'static, ()>,
    before: Leftovers,
    /// Bytes of the log that were there before.
    logged: usize,
}

impl Host {
    /// Waits for the turn and takes the host.
    ///
    /// # Panics
    /// When this is no test host: a missing host is a failure, never a skip.
    #[must_use]
    #[track_caller]
    pub fn take() -> Self {
        let turn = HOST.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            Path::new("/usr/bin/containerd-shim-hull-v2").exists(),
            "Hull is not installed here: run these tests with tests/integration/run"
        );
        IMAGES.get_or_init(|| {
            let import = ["image", "import", &format!("{SHARE}/busybox.tar")].map(str::to_owned);
            let imported = command("ctr", &import, b"");
            assert_eq!(imported.status, 0, "import {IMAGE}: {imported:#?}");
        });
        Self {
            _turn: turn,
            before: Leftovers::now(),
            logged: log().len(),
        }
    }

    /// Runs `ctr` with the arguments.
    #[must_use]
    pub fn ctr(&self, args: &[&str]) -> Finished {
        command("ctr", args, b"")
    }

    /// Prepares a container with the given name of the test image.
    #[must_use]
    pub fn container<'a>(&'a self, name: &'a str) -> Container<'a> {
        Container::new(self, name)
    }

    /// A file of the folder that is shared with the machine the tests were started on.
    #[must_use]
    pub fn shared(&self, name: &str) -> PathBuf {
        Path::new(SHARE).join(name)
    }

    /// The host's kernel release.
    #[must_use]
    pub fn kernel_release(&self) -> String {
        command("uname", &["-r"], b"").output().to_owned()
    }

    /// Moves a file out of the way until the guard is dropped.
    ///
    /// # Panics
    /// When it cannot be moved.
    #[must_use]
    pub fn hide(&self, path: &str) -> Hidden {
        let from = PathBuf::from(path);
        let mut to = from.clone().into_os_string();
        to.push(".hidden");
        let to = PathBuf::from(to);
        fs::rename(&from, &to).unwrap_or_else(|e| panic!("hide {path}: {e}"));
        Hidden { from, to }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd and its shims said:");
            for line in log()[self.logged..].lines().filter(|line| !is_debug(line)) {
                eprintln!("{line}");
            }
            // One failure is enough to read: the next test shall not find this one's containers.
            remove_all_containers();
            return;
        }
        let mut left = Leftovers::now().since(&self.before);
        let deadline = std::time::Instant::now() + wait::PATIENCE / 4;
        while !left.is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(50));
            left = Leftovers::now().since(&self.before);
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// What containerd and its shims have said so far.
fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

fn is_debug(line: &str) -> bool {
    line.contains("level=debug")
}

fn remove_all_containers() {
    let ctr = |words: &[&str]| command("ctr", words, b"");
    for id in ctr(&["container", "ls", "-q"]).stdout.split_whitespace() {
        let _ = ctr(&["task", "rm", "--force", id]);
        let _ = ctr(&["container", "rm", id]);
    }
}

/// A file that is out of the way.
#[derive(Debug)]
pub struct Hidden {
    from: PathBuf,
    to: PathBuf,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Err(e) = fs::rename(&self.to, &self.from) {
            eprintln!("bring back {}: {e}", self.from.display());
        }
    }
}
