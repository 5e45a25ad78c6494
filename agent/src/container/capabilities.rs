//! A process's capabilities (OCI runtime-spec 1.2, config.md "Linux Process"; capabilities(7)). Pure.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};

/// What the launcher needs on top of the process's own capabilities, until it drops them: to enter
/// the working directory and create it, hand the streams to the user, become the user, load a
/// seccomp profile without `no_new_privs`, and shrink the bounding set.
pub const LAUNCHER: [Capability; 6] = [
    Capability::DacOverride,
    Capability::Chown,
    Capability::Setuid,
    Capability::Setgid,
    Capability::SysAdmin,
    Capability::Setpcap,
];

/// What it needs besides to copy an image's files as they are: to set the mode and times of another
/// user's file and its set-group-ID bit, to make devices, and to give a file capabilities.
pub const COPIER: [Capability; 4] = [
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Mknod,
    Capability::Setfcap,
];

/// The process's capabilities. A set that is not given is empty, as with runc; to libcontainer it
/// would be whatever there is.
pub fn of(process: &Process) -> LinuxCapabilities {
    let given = process.capabilities().as_ref();
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(given.and_then(|sets| of(sets).clone()).unwrap_or_default())
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding))
        .set_effective(set(LinuxCapabilities::effective))
        .set_permitted(set(LinuxCapabilities::permitted))
        .set_inheritable(set(LinuxCapabilities::inheritable))
        .set_ambient(set(LinuxCapabilities::ambient));
    all
}

/// Those, and what the launcher needs until it drops it; `copies` tells whether it has files to copy.
pub fn for_launcher(own: &LinuxCapabilities, copies: bool) -> LinuxCapabilities {
    let copier = COPIER.iter().filter(|_| copies);
    let needed: Vec<Capability> = LAUNCHER.iter().chain(copier).copied().collect();
    let with_launcher = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(needed.iter().copied());
        Some(set)
    };
    let mut all = own.clone();
    all.set_bounding(with_launcher(own.bounding()))
        .set_effective(with_launcher(own.permitted()))
        .set_permitted(with_launcher(own.permitted()))
        .set_inheritable(None)
        .set_ambient(None);
    all
}
