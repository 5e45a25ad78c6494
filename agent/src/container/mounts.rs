//! What libcontainer leaves undone of a mount's options. Pure.
//!
//! It mounts with `fsopen(2)` and `open_tree(2)`, whose attributes are those of one mount. How a mount
//! propagates takes a call of its own, which it does not make, and what concerns the whole file
//! system it forgets. (OCI runtime-spec 1.2, config.md "Linux mount options")

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

/// How what is mounted at a destination propagates: one `mount(2)` of the launcher's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// A path of the container's.
    pub destination: PathBuf,
    /// `MS_SHARED` or one of its kind.
    pub flags: MsFlags,
}

/// How `mounts` are to propagate, in their order.
pub fn propagations(mounts: &[Mount]) -> Vec<Propagation> {
    let options = |mount: &Mount| mount.options().clone().unwrap_or_default();
    let of = |mount: &Mount| {
        let destination = mount.destination().clone();
        let flags = options(mount).into_iter();
        let flags = flags.filter_map(|option| propagation(&option));
        flags.map(move |flags| Propagation {
            destination: destination.clone(),
            flags,
        })
    };
    mounts.iter().flat_map(of).collect()
}

/// Whether the options of a mount say so, the last of them.
pub fn is_read_only(options: &[String]) -> bool {
    let mut access = options.iter().rev();
    let last = access.find(|option| *option == "ro" || *option == "rw");
    last.is_some_and(|option| option == "ro")
}

/// Whether `/dev` is to be read-only: libcontainer lets go of that, since it makes the devices there.
pub fn has_read_only_devices(mounts: &[Mount]) -> bool {
    let mut devices = mounts
        .iter()
        .filter(|mount| mount.destination() == Path::new("/dev"));
    let options = devices
        .next_back()
        .and_then(|mount| mount.options().as_deref());
    options.is_some_and(is_read_only)
}

fn propagation(option: &str) -> Option<MsFlags> {
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

/// `linux.rootfsPropagation` in the words that libcontainer knows, which are those without an `r`: as
/// runc does, it changes every mount that there is before the root is made.
pub fn of_root(propagation: &str) -> String {
    let plain = match propagation {
        "rprivate" => "private",
        "rshared" => "shared",
        "rslave" => "slave",
        "runbindable" => "unbindable",
        other => other,
    };
    plain.to_owned()
}

/// A mount's options in the words that make libcontainer do what they say.
pub fn reword(options: &[String]) -> Vec<String> {
    let mut reworded: Vec<String> = options.iter().filter_map(|o| word(o)).collect();
    let mut links = options.iter().map(String::as_str);
    if links.rfind(|option| option.ends_with("symfollow")) == Some("nosymfollow") {
        // The one it knows, the same for what has no mounts below.
        reworded.push("rnosymfollow".to_owned());
    }
    reworded
}

fn word(option: &str) -> Option<String> {
    match option {
        // It would give these to the file system, which refuses them. The first four have no
        // effect on any file system of the guest.
        "iversion" | "noiversion" | "silent" | "loud" | "symfollow" | "nosymfollow" => None,
        // These it takes for a mount's own, and drops. What has a value goes to `fsconfig(2)`, and
        // there the kernel looks at the key.
        "sync" | "async" | "dirsync" => Some(format!("{option}=")),
        other => Some(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reworded(options: &[&str]) -> Vec<String> {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        reword(&options)
    }

    #[test]
    fn propagation_is_a_call_of_its_own_each_in_order() {
        let options = ["rbind", "shared", "ro", "rslave"];
        let mount = serde_json::json!({ "destination": "/m", "options": options });
        let mounts: [Mount; 1] = [serde_json::from_value(mount).unwrap()];

        let flags: Vec<_> = propagations(&mounts).into_iter().map(|p| p.flags).collect();

        let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        assert_eq!(flags, [MsFlags::MS_SHARED, slave]);
    }

    #[test]
    fn devices_are_read_only_as_the_last_option_of_the_last_mount_says() {
        let has = |mounts: &[(&str, &[&str])]| {
            let mount = |(at, options): &(&str, &[&str])| {
                let mount = serde_json::json!({ "destination": at, "options": options });
                serde_json::from_value(mount).unwrap()
            };
            has_read_only_devices(&mounts.iter().map(mount).collect::<Vec<Mount>>())
        };

        assert!(has(&[
            ("/dev", &["nosuid", "rw", "ro"]),
            ("/dev/shm", &["rw"])
        ]));
        assert!(!has(&[("/dev", &["ro", "rw"]), ("/dev/shm", &["ro"])]));
        assert!(!has(&[("/dev", &["ro"]), ("/dev", &["nosuid"])]));
        assert!(!has(&[]));
    }

    #[test]
    fn options_of_the_file_system_reach_it() {
        assert_eq!(
            reworded(&["ro", "sync", "mode=7"]),
            ["ro", "sync=", "mode=7"]
        );
    }

    #[test]
    fn options_without_effect_are_dropped() {
        assert_eq!(reworded(&["silent", "ro", "iversion"]), ["ro"]);
    }

    #[test]
    fn links_are_followed_as_the_last_option_says() {
        assert_eq!(reworded(&["symfollow", "nosymfollow"]), ["rnosymfollow"]);
        assert_eq!(reworded(&["nosymfollow", "symfollow"]), [""; 0]);
    }
}
