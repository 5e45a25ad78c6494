//! What libcontainer leaves undone of a mount's options, for the launcher to do. Pure.
//!
//! It mounts with `fsopen(2)` and `open_tree(2)`, whose attributes are those of one mount. How a mount
//! propagates, and that its file system writes at once, take calls of their own, which it does not
//! make. (OCI runtime-spec 1.2, config.md "Linux mount options")

use std::path::PathBuf;

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

/// One `mount(2)` that changes what is mounted at `destination`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A path of the container's.
    pub destination: PathBuf,
    /// What to make of it.
    pub flags: MsFlags,
}

/// Options that libcontainer does not know, so that it gives them to the file system, which refuses
/// them. The first four have no effect on any file system of the guest.
const NOT_PASSED_ON: [&str; 6] = [
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "symfollow",
    "nosymfollow",
];

/// The changes that the options of `mounts` ask for, in their order; takes out of them what would be
/// an error for libcontainer.
pub fn changes(mounts: &mut [Mount]) -> Vec<Change> {
    let mut changes = Vec::new();
    for mount in mounts {
        let options = mount.options().clone().unwrap_or_default();
        let is_bind = options
            .iter()
            .any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let change = |flags| Change {
            destination: mount.destination().clone(),
            flags,
        };
        // A bind mount's file system is the host's, whose matter it is when it writes.
        let writes = if is_bind {
            MsFlags::empty()
        } else {
            writes(&options)
        };
        if !writes.is_empty() {
            changes.push(change(MsFlags::MS_REMOUNT | writes));
        }
        changes.extend(options.iter().filter_map(|o| propagation(o)).map(change));
        let follows = options.iter().rfind(|option| option.ends_with("symfollow"));
        let keeps_links = follows.is_some_and(|option| option == "nosymfollow");
        let mut kept = options.clone();
        kept.retain(|option| !NOT_PASSED_ON.contains(&option.as_str()));
        if keeps_links {
            // The one that libcontainer knows, the same for what has no mounts below.
            kept.push("rnosymfollow".to_owned());
        }
        if kept != options {
            mount.set_options(Some(kept));
        }
    }
    changes
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

/// How the file system is to write; of options that contradict each other the last one counts.
pub(super) fn writes(options: &[String]) -> MsFlags {
    let mut flags = MsFlags::empty();
    for option in options {
        match option.as_str() {
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "async" => flags -= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            _ => {}
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(options: &[&str]) -> Vec<Mount> {
        let mount = serde_json::json!({ "destination": "/m", "type": "tmpfs", "options": options });
        vec![serde_json::from_value(mount).unwrap()]
    }

    fn flags(options: &[&str]) -> Vec<MsFlags> {
        let changes = changes(&mut mounts(options));
        changes.into_iter().map(|change| change.flags).collect()
    }

    #[test]
    fn propagation_is_a_change_of_its_own_each_in_order() {
        assert_eq!(
            flags(&["rbind", "shared", "ro", "rslave"]),
            [MsFlags::MS_SHARED, MsFlags::MS_SLAVE | MsFlags::MS_REC]
        );
    }

    #[test]
    fn a_file_system_of_the_guests_is_told_how_to_write() {
        let sync = MsFlags::MS_REMOUNT | MsFlags::MS_SYNCHRONOUS;
        assert_eq!(flags(&["sync"]), [sync]);
        assert_eq!(flags(&["sync", "dirsync"]), [sync | MsFlags::MS_DIRSYNC]);
        assert_eq!(flags(&["sync", "async"]), []);
        assert_eq!(flags(&["bind", "sync"]), []);
    }

    #[test]
    fn links_are_followed_as_the_last_option_says() {
        let options = |options: &[&str]| {
            let mut mounts = mounts(options);
            changes(&mut mounts);
            mounts.remove(0).options().clone().unwrap()
        };
        assert_eq!(options(&["symfollow", "nosymfollow"]), ["rnosymfollow"]);
        assert_eq!(options(&["nosymfollow", "symfollow"]), [""; 0]);
    }

    #[test]
    fn options_without_effect_are_taken_out() {
        let mut mounts = mounts(&["silent", "ro", "iversion"]);
        assert_eq!(changes(&mut mounts), []);
        assert_eq!(mounts[0].options(), &Some(vec!["ro".to_owned()]));
    }
}
