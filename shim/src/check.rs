//! `hull check`: whether this host has what Hull needs.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::Config;
use crate::network::VHOST_NET;

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
    let mut findings = vec![
        finding("KVM", kvm()),
        finding("kernel", file(&config.kernel, "kernel", false)),
        finding("image", file(&config.image, "image", false)),
        finding("vmm", file(&config.vmm, "vmm", true)),
        finding("virtiofsd", file(&config.virtiofsd, "virtiofsd", true)),
        finding("pasta", pasta(&config.pasta)),
        finding("shim", shim(&std::env::var("PATH").unwrap_or_default())),
        finding("cgroups", cgroups(Path::new("/sys/fs/cgroup"))),
        finding("state", state(&config.state)),
        finding(
            "jail",
            jail(Path::new("/proc/sys/user/max_user_namespaces")),
        ),
    ];
    // Nobody else needs it.
    if config.vhost_net {
        findings.push(finding("vhost-net", vhost_net(Path::new(VHOST_NET))));
    }
    findings
}

/// What KVM takes.
const KVM_NEEDS: &str = if cfg!(target_arch = "aarch64") {
    "boot the host's kernel at EL2, as firmware on bare metal does (dmesg says \"HYP mode not available\" \
     where it is not)"
} else {
    "load the module kvm_intel or kvm_amd, enable virtualization in the firmware"
};

fn kvm() -> Result<String, String> {
    let path = "/dev/kvm";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(format!("{path} can be opened")),
        Err(e) => Err(format!("open {path}: {e}; {KVM_NEEDS}, and run as root")),
    }
}

fn vhost_net(path: &Path) -> Result<String, String> {
    let shown = path.display();
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(format!("{shown} can be opened")),
        Err(e) => Err(format!(
            "open {shown}: {e}; modprobe vhost_net, and run as root, or set \"vhost_net\" to false in {}",
            crate::config::PATH
        )),
    }
}

fn file(path: &Path, key: &str, program: bool) -> Result<String, String> {
    let shown = path.display();
    let hint = format!("install it or set \"{key}\" in {}", crate::config::PATH);
    match path.metadata() {
        Err(e) => Err(format!("{shown}: {e}; {hint}")),
        Ok(found) if !found.is_file() => Err(format!("{shown} is no file; {hint}")),
        Ok(found) if program && found.permissions().mode() & 0o111 == 0 => {
            Err(format!("{shown} is not executable; {hint}"))
        }
        Ok(found) => Ok(format!("{shown}, {} KiB", found.len() >> 10)),
    }
}

/// Nothing else needs it, so it may be missing.
fn pasta(path: &Path) -> Result<String, String> {
    if path.is_file() {
        file(path, "pasta", true)
    } else {
        Ok(format!(
            "{} is not there: no --network host; the package passt has it",
            path.display()
        ))
    }
}

fn shim(path: &str) -> Result<String, String> {
    const NAME: &str = "containerd-shim-hull-v2";
    let found = std::env::split_paths(path)
        .map(|folder| folder.join(NAME))
        .find(|p| p.is_file());
    match found {
        Some(path) => Ok(path.display().to_string()),
        None => Err(format!(
            "{NAME} is not in PATH, where containerd looks for it"
        )),
    }
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

fn state(path: &Path) -> Result<String, String> {
    match std::fs::create_dir_all(path) {
        Ok(()) => Ok(format!("{} can be written", path.display())),
        Err(e) => Err(format!(
            "make {}: {e}; run as root or set \"state\"",
            path.display()
        )),
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
        assert!(shim("/no/such").unwrap_err().contains("PATH"));
        let error = cgroups(Path::new("/no/such")).unwrap_err();
        assert!(error.contains("unified_cgroup_hierarchy"), "{error}");
        let error = vhost_net(Path::new("/no/such")).unwrap_err();
        assert!(error.contains("modprobe vhost_net"), "{error}");
        let error = jail(Path::new("/no/such")).unwrap_err();
        assert!(error.contains("CONFIG_USER_NS"), "{error}");
    }

    #[test]
    fn vhost_net_is_looked_for_where_it_is_used() {
        for vhost_net in [true, false] {
            let config = Config {
                vhost_net,
                ..Config::default()
            };
            let looked = check(&config).iter().any(|it| it.name == "vhost-net");
            assert_eq!(looked, vhost_net);
        }
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
