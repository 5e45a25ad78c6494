//! `hull check`: whether this host has what Hull needs.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};

use crate::config::{self, Config};
use crate::network::VHOST_NET;

/// The oldest containerd, major and minor version. Those before do not understand the answer of a shim's `start`.
const CONTAINERD: (u32, u32) = (1, 7);

/// The oldest pasta, by the year in its version.
const PASTA: u32 = 2025;

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// What was found, or what is wrong and what to do.
    pub result: Result<String, String>,
}

/// Looks at everything.
#[must_use]
pub fn check(config: &Config) -> Vec<Finding> {
    let finding = |name, result| Finding { name, result };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut findings = vec![
        finding("KVM", kvm()),
        finding("tun", device("/dev/net/tun", "modprobe tun")),
        finding("kernel", file(&config.kernel, "kernel", false)),
        finding("image", file(&config.image, "image", false)),
        finding("vmm", file(&config.vmm, "vmm", true)),
        finding("virtiofsd", file(&config.virtiofsd, "virtiofsd", true)),
        finding("pasta", pasta(&config.pasta)),
        finding("shim", shim(&path)),
        finding("containerd", containerd(&path)),
        finding("cgroups", cgroups(Path::new("/sys/fs/cgroup"))),
        finding("state", state(&config.state)),
        finding(
            "jail",
            jail(Path::new("/proc/sys/user/max_user_namespaces")),
        ),
    ];
    // Nobody else needs them.
    if config.vhost_net {
        findings.push(finding("vhost-net", vhost_net(VHOST_NET)));
    }
    if config.jail.core_scheduling {
        let own = core_scheduling_cookie(rustix::process::getpid(), CoreSchedulingScope::Thread);
        findings.push(finding("cores", core_scheduling(own)));
    }
    findings
}

fn kvm() -> Result<String, String> {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    device("/dev/kvm", kvm_needs(&processors))
}

/// What KVM takes, on a host whose `/proc/cpuinfo` this is.
fn kvm_needs(processors: &str) -> &'static str {
    let is_virtual = processors
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
    if cfg!(target_arch = "aarch64") {
        "boot the host's kernel at EL2, as firmware on bare metal does (dmesg says \"HYP mode not available\" \
         where it is not)"
    } else if is_virtual {
        "this host is a virtual machine: have its hypervisor, or who rents it out, enable nested virtualization \
         for it, and load the module kvm_intel or kvm_amd here"
    } else {
        "load the module kvm_intel or kvm_amd, enable virtualization in the firmware"
    }
}

fn vhost_net(path: &str) -> Result<String, String> {
    let hint = format!(
        "modprobe vhost_net, or set \"vhost_net\" to false in {}",
        config::path().display()
    );
    device(path, &hint)
}

fn device(path: &str, hint: &str) -> Result<String, String> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(format!("{path} can be opened")),
        Err(e) => Err(format!("open {path}: {e}; {hint}, and run as root")),
    }
}

fn file(path: &Path, key: &str, program: bool) -> Result<String, String> {
    let shown = path.display();
    let hint = format!(
        "install it or set \"{key}\" in {}",
        config::path().display()
    );
    match path.metadata() {
        Err(e) => Err(format!("{shown}: {e}; {hint}")),
        Ok(found) if !found.is_file() => Err(format!("{shown} is no file; {hint}")),
        Ok(found) if program && found.permissions().mode() & 0o111 == 0 => {
            Err(format!("{shown} is not executable; {hint}"))
        }
        Ok(found) => Ok(format!("{shown}, {} KiB", found.len() >> 10)),
    }
}

/// Nothing but `--network host` needs it, so it may be missing, or old.
fn pasta(path: &Path) -> Result<String, String> {
    let shown = path.display();
    if !path.is_file() {
        return Ok(format!(
            "{shown} is not there: no --network host; the package passt has it"
        ));
    }
    let found = file(path, "pasta", true)?;
    Ok(match version(path).as_deref().map(pasta_year) {
        Ok(Some(year)) if year < PASTA => format!(
            "{shown} is of {year}: no --network host, which takes a package passt of {PASTA} or later"
        ),
        Ok(Some(year)) => format!("{found}, of {year}"),
        Ok(None) | Err(_) => format!(
            "{found}, of an unknown version: --network host takes a package passt of {PASTA} or later"
        ),
    })
}

/// The year in what `pasta --version` prints: "pasta 0.0~git20250503.587980c-2" as Debian packages it,
/// "pasta 2025_05_03.587980c" as its makers do.
fn pasta_year(printed: &str) -> Option<u32> {
    let version = printed.split_whitespace().nth(1)?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers.find_map(|number| number.get(..4))?.parse().ok()
}

fn shim(path: &OsStr) -> Result<String, String> {
    const NAME: &str = "containerd-shim-hull-v2";
    match in_path(NAME, path) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(format!(
            "{NAME} is not in PATH, where containerd looks for it"
        )),
    }
}

/// It may be missing, or have another name: `hull oci` needs none.
fn containerd(path: &OsStr) -> Result<String, String> {
    let (major, minor) = CONTAINERD;
    let Some(program) = in_path("containerd", path) else {
        return Ok(format!(
            "not in PATH; where Hull is run by one, it has to be {major}.{minor} or later"
        ));
    };
    let shown = program.display();
    let printed = version(&program)?;
    match containerd_version(&printed) {
        Some(found) if found < CONTAINERD => Err(format!(
            "{shown} is {}.{}; install {major}.{minor} or later: Debian 13 has it, and so has Docker's package \
             containerd.io",
            found.0, found.1
        )),
        Some(found) => Ok(format!("{shown}, {}.{}", found.0, found.1)),
        None => Ok(format!(
            "{shown}, of an unknown version; it has to be {major}.{minor} or later"
        )),
    }
}

/// Major and minor version in what `containerd --version` prints: "containerd NAME 1.7.24~ds1 REVISION".
fn containerd_version(printed: &str) -> Option<(u32, u32)> {
    let version = printed.split_whitespace().nth(2)?;
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '~', '+']);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// What a program says of its version.
fn version(program: &Path) -> Result<String, String> {
    let run = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(run) => Ok(String::from_utf8_lossy(&run.stdout).into_owned()),
        Err(e) => Err(format!("run {} --version: {e}", program.display())),
    }
}

/// Where a program is.
fn in_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
}

/// containerd puts the shim, and so the VMM, into cgroups; figures and limits are told in version 2's
/// terms.
fn cgroups(root: &Path) -> Result<String, String> {
    if root.join("cgroup.controllers").is_file() {
        Ok(format!("version 2 at {}", root.display()))
    } else {
        Err(format!(
            "no cgroup version 2 at {}; boot the host with systemd.unified_cgroup_hierarchy=1",
            root.display()
        ))
    }
}

/// hull-vmm runs in a user namespace of its own, or not at all (docs/security.md).
fn jail(sysctl: &Path) -> Result<String, String> {
    let limit = std::fs::read_to_string(sysctl).unwrap_or_default();
    match limit.trim().parse::<u64>() {
        Ok(1..) => Ok("user namespaces can be made".to_owned()),
        Ok(0) => Err("the sysctl user.max_user_namespaces is 0; set it higher".to_owned()),
        Err(_) => Err(format!(
            "no {}; the host's kernel needs CONFIG_USER_NS",
            sysctl.display()
        )),
    }
}

/// What hull-vmm's jail asks the kernel for (`prctl(PR_SCHED_CORE)`), by the answer to a question that changes nothing.
fn core_scheduling(own: Result<u64, Errno>) -> Result<String, String> {
    match own {
        Ok(_) => Ok("the kernel has core scheduling".to_owned()),
        Err(Errno::NODEV) => Ok("no core runs two threads at a time".to_owned()),
        Err(e) => Err(format!(
            "ask for core scheduling: {e}; boot a kernel with CONFIG_SCHED_CORE, or set \"jail.core_scheduling\" \
             to false in {}",
            config::path().display()
        )),
    }
}

fn state(path: &Path) -> Result<String, String> {
    let hint = || {
        let config = config::path();
        format!("run as root, or set \"state\" in {}", config.display())
    };
    // As the first sandbox would make it.
    let mut folder = DirBuilder::new();
    if let Err(e) = folder.recursive(true).mode(0o700).create(path) {
        return Err(format!("make {}: {e}; {}", path.display(), hint()));
    }
    // A file system may be read-only, or full.
    let probe = path.join(format!(".check-{}", std::process::id()));
    let written = File::create_new(&probe).and_then(|mut file| {
        let written = std::io::Write::write_all(&mut file, b"\n");
        let removed = fs::remove_file(&probe);
        written.and(removed)
    });
    match written {
        Ok(()) => Ok(format!("{} can be written", path.display())),
        Err(e) => Err(format!("write {}: {e}; {}", probe.display(), hint())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let error = file(Path::new("/no/such"), "kernel", false).unwrap_err();
        assert!(
            error.contains("/no/such") && error.contains("set \"kernel\""),
            "{error}"
        );
        assert!(shim("/no/such".as_ref()).unwrap_err().contains("PATH"));
        let error = cgroups(Path::new("/no/such")).unwrap_err();
        assert!(error.contains("unified_cgroup_hierarchy"), "{error}");
        let error = vhost_net("/no/such").unwrap_err();
        assert!(error.contains("modprobe vhost_net"), "{error}");
        let error = core_scheduling(Err(Errno::INVAL)).unwrap_err();
        assert!(error.contains("CONFIG_SCHED_CORE"), "{error}");
        assert!(core_scheduling(Err(Errno::NODEV)).is_ok());
        let error = jail(Path::new("/no/such")).unwrap_err();
        assert!(error.contains("CONFIG_USER_NS"), "{error}");
    }

    #[test]
    fn what_is_off_is_not_looked_for() {
        for on in [true, false] {
            let mut config = Config {
                vhost_net: on,
                ..Config::default()
            };
            config.jail.core_scheduling = on;
            let findings = check(&config);
            for name in ["vhost-net", "cores"] {
                let looked = findings.iter().any(|it| it.name == name);
                assert_eq!(looked, on, "{name}");
            }
        }
    }

    #[test]
    fn a_virtual_host_needs_nested_virtualization() {
        let metal = "processor\t: 0\nflags\t\t: fpu vmx\nmodel name\t: hypervisor\n";
        assert!(!kvm_needs(metal).contains("nested"));
        if cfg!(target_arch = "x86_64") {
            let virtual_ = "processor\t: 0\nflags\t\t: fpu vmx hypervisor lahf_lm\n";
            assert!(kvm_needs(virtual_).contains("nested"));
        }
    }

    #[test]
    fn versions_of_containerd_are_read() {
        for (printed, version) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1\n",
                Some((1, 6)),
            ),
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4\n",
                Some((1, 7)),
            ),
            (
                "containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da\n",
                Some((1, 7)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.0.0-rc.1 a1b2\n",
                Some((2, 0)),
            ),
            (
                "containerd github.com/containerd/containerd/v2 2.10+unknown\n",
                Some((2, 10)),
            ),
            (
                "containerd github.com/containerd/containerd main a1b2\n",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(containerd_version(printed), version, "{printed}");
        }
    }

    #[test]
    fn years_of_pasta_are_read() {
        for (printed, year) in [
            (
                "pasta 0.0~git20230309.7c7625d-1\nCopyright Red Hat\n",
                Some(2023),
            ),
            ("pasta 0.0~git20250503.587980c-2\n", Some(2025)),
            ("pasta 2026_01_20.386b5f5\n", Some(2026)),
            ("pasta unknown version\n", None),
            ("", None),
        ] {
            assert_eq!(pasta_year(printed), year, "{printed}");
        }
    }

    /// A program that prints this when it is asked for its version.
    fn program(folder: &Path, name: &str, printed: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\necho '{printed}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_old_containerd_is_missing_and_an_old_pasta_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().as_os_str();
        assert!(containerd(path).unwrap().contains("not in PATH"));
        program(folder.path(), "containerd", "containerd x 1.6.20~ds1 y");
        let error = containerd(path).unwrap_err();
        assert!(
            error.contains("1.6") && error.contains("install 1.7"),
            "{error}"
        );
        program(folder.path(), "containerd", "containerd x 2.1.4 y");
        assert!(containerd(path).unwrap().ends_with("containerd, 2.1"));

        let old = program(folder.path(), "pasta", "pasta 0.0~git20230309.7c7625d-1");
        assert!(pasta(&old).unwrap().contains("of 2023: no --network host"));
        let new = program(folder.path(), "pasta", "pasta 0.0~git20250503.587980c-2");
        assert!(pasta(&new).unwrap().ends_with("of 2025"));
    }

    #[test]
    fn the_state_is_written_to_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/hull");
        state(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        let file = path.join("file");
        fs::write(&file, "").unwrap();
        let error = state(&file).unwrap_err();
        assert!(error.contains("set \"state\" in"), "{error}");
    }

    #[test]
    fn a_program_has_to_be_executable() {
        let file_ = tempfile::NamedTempFile::new().unwrap();
        assert!(file(file_.path(), "vmm", false).is_ok());
        assert!(
            file(file_.path(), "vmm", true)
                .unwrap_err()
                .contains("not executable")
        );
    }
}
