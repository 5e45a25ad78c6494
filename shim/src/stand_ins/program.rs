//! What a stand-in does: it looks like what it stands for, says so with a byte on its output, and waits for its
//! input to end, as it does with the shim.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use nix::unistd::{Gid, Uid, execve, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    set_capabilities, set_capabilities_secure_bits, set_name, set_no_new_privs,
};

use super::PROGRAM;
use super::figure::{Kind, Role, words};

/// The environment variable that makes this program a stand-in; the arguments are what they are.
pub const ROLE: &str = "HULL_STAND_IN";

/// Bytes of an order, at most: those of the longest command line and some.
const MAX_ORDER: u32 = 1 << 16;

/// Root, whom a stand-in is but in looks.
const ROOT: u32 = 0;

/// Plays the role, until the shim is gone.
#[must_use]
pub fn run(role: &OsStr) -> ExitCode {
    let Some(role) = Role::parse(role) else {
        return ExitCode::FAILURE;
    };
    match play(&role) {
        Ok(()) => ExitCode::SUCCESS,
        // It has no one to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn play(role: &Role) -> io::Result<()> {
    set_name(&role.name)?;
    give_up_rights(role.kind)?;
    look_like(role.uid, role.gid)?;
    if role.kind != Kind::Init {
        set_rights(CapabilitySet::empty())?;
    }
    io::stdout().write_all(&[0])?;
    io::stdout().flush()?;
    if role.kind == Kind::Zombie {
        return Ok(());
    }
    let mut orders = io::stdin().lock();
    loop {
        let mut length = [0; 4];
        orders.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_ORDER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; usize::try_from(length).unwrap_or_default()];
        orders.read_exact(&mut body)?;
        // It stays what it is if it cannot.
        let Err(_) = start_again(&words(&body));
        look_like(role.uid, role.gid)?;
    }
}

/// Keeps what it takes to change the looks, and loses the way back to more.
fn give_up_rights(kind: Kind) -> io::Result<()> {
    set_no_new_privs(true)?;
    let looks = CapabilitySet::SETUID | CapabilitySet::SETGID;
    // One that has executed itself again has these already, and no right to set them.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    if rustix::thread::capabilities_secure_bits()? != bits {
        set_capabilities_secure_bits(bits)?;
        setgroups(&[])?;
    }
    set_rights(looks)?;
    if kind == Kind::Init {
        for right in looks.iter() {
            configure_capability_in_ambient_set(right, true)?;
        }
    }
    Ok(())
}

fn set_rights(rights: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: rights,
        permitted: rights,
        inheritable: rights,
    };
    Ok(set_capabilities(None, sets)?)
}

/// Has these effective ids. The real and saved ones stay root's.
fn look_like(uid: u32, gid: u32) -> io::Result<()> {
    let (root, roots) = (Uid::from_raw(ROOT), Gid::from_raw(ROOT));
    setresgid(roots, Gid::from_raw(gid), roots)?;
    setresuid(root, Uid::from_raw(uid), root)?;
    // Or its folder in /proc, where ps looks, is root's.
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// Executes this program again, as root: whose effective user is another loses what it kept.
fn start_again(order: &[CString]) -> io::Result<Infallible> {
    let (role, args) = order.split_first().ok_or(io::ErrorKind::InvalidData)?;
    look_like(ROOT, ROOT)?;
    let mut variable = OsString::from(ROLE);
    variable.push("=");
    variable.push(OsStr::from_bytes(role.as_bytes()));
    let variable = CString::new(variable.as_bytes())?;
    let program = CString::new(PROGRAM)?;
    Ok(execve(&program, args, &[variable])?)
}
