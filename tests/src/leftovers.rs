//! What a runtime could leave on a host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything on this host that is, or could be, Hull's: one line for each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Looks around.
    #[must_use]
    pub(crate) fn now() -> Self {
        let mut found = BTreeSet::new();
        found.extend(processes());
        found.extend(mounts());
        found.extend(entries("/sys/class/net").map(|path| line("interface", &path)));
        found.extend(entries("/run/netns").map(|path| line("network namespace", &path)));
        // As with runc, the group of containerd's namespace stays.
        let shared_group = Path::new("/sys/fs/cgroup/default");
        let cgroups = tree("/sys/fs/cgroup", Path::is_dir).filter(|path| path != shared_group);
        found.extend(cgroups.map(|path| line("cgroup", &path)));
        let ours = ["/run/hull", "/run/hull-oci"].into_iter();
        found.extend(
            ours.flat_map(|root| tree(root, |_| true))
                .map(|path| line("file", &path)),
        );
        found.extend(
            tree("/run/containerd", |path| !path.is_dir() && !of_others(path))
                .map(|path| line("file", &path)),
        );
        let bundles = "/run/containerd/io.containerd.runtime.v2.task";
        found.extend(
            entries(bundles)
                .flat_map(entries)
                .map(|path| line("bundle", &path)),
        );
        Self(found)
    }

    /// What is here now and was not `before`.
    #[must_use]
    pub(crate) fn since(self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).cloned().collect())
    }

    /// Whether there is nothing.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Named pipes that `ctr` makes for a process, and leaves when its runtime was killed; the profiles
/// that crun, which some tests compare with, has compiled.
fn of_others(path: &Path) -> bool {
    path.starts_with("/run/containerd/fifo")
        || path.starts_with("/run/containerd/runc/default/.cache/seccomp")
}

fn line(kind: &str, path: &Path) -> String {
    format!("{kind} {}", path.display())
}

/// Processes that run one of our programs, or one that we start, zombies included; stand-ins have other
/// names than their program.
fn processes() -> impl Iterator<Item = String> {
    const NAMES: [&str; 9] = [
        "containerd-shim",
        "hull",
        "hull-oci",
        "hull-vmm",
        "hull-agent",
        "virtiofsd",
        "pasta",
        "pasta.avx2",
        "conmon",
    ];
    entries("/proc").filter_map(|process| {
        // The kernel cuts the name after 15 bytes.
        let name = fs::read_to_string(process.join("comm")).ok()?;
        let name = name.trim();
        let program = fs::read_link(process.join("exe")).unwrap_or_default();
        let ours = NAMES.contains(&name) || program.ends_with("containerd-shim-hull-v2");
        ours.then(|| format!("process {} {name}", process.display()))
    })
}

fn mounts() -> impl Iterator<Item = String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<String> = table
        .lines()
        .filter_map(|mount| mount.split(' ').nth(4))
        .filter(|point| point.starts_with("/run"))
        .map(|point| format!("mount {point}"))
        .collect();
    points.into_iter()
}

/// The entries of a directory; none when there is no such directory.
fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// All below a directory that `wanted` accepts, without following symbolic links.
fn tree(directory: impl AsRef<Path>, wanted: fn(&Path) -> bool) -> impl Iterator<Item = PathBuf> {
    let mut todo = vec![directory.as_ref().to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = todo.pop() {
        for path in entries(directory) {
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.into_iter().filter(move |path| wanted(path))
}
