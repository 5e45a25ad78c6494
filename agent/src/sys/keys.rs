//! Session keyrings (session-keyring(7)).

#![expect(unsafe_code, reason = "no crate of ours has keyctl(2)")]

use std::ffi::CStr;
use std::io;

use nix::errno::Errno;

/// Operations of keyctl(2) (linux/keyctl.h).
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEYCTL_SETPERM: libc::c_long = 5;
const KEYCTL_DESCRIBE: libc::c_long = 6;
/// The calling thread's own, whatever its number is.
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;

/// Who may find a keyring by its name, besides those who have it (linux/keyctl.h).
#[derive(Clone, Copy, Debug)]
pub enum Finder {
    /// Processes of the user that it belongs to.
    User = 0x0008_0000,
    /// All of its user namespace.
    Others = 0x0000_0008,
}

/// Gives the calling thread the session keyring `name`, a new one if there is none that it may find, and
/// lets `finder` find it.
///
/// # Errors
/// `ENOSYS` if the kernel has no keyrings, `EDQUOT` if the user has too many.
pub fn join_session_keyring(name: &CStr, finder: Finder) -> io::Result<()> {
    // SAFETY: the kernel reads the name, up to its NUL.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })?;
    let keyring = KEY_SPEC_SESSION_KEYRING;
    let mut text = [0_u8; 512];
    let (to, length) = (text.as_mut_ptr(), text.len());
    // SAFETY: the kernel writes to `text`, no more than its length.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, keyring, to, length)
    })?;
    let given = permissions(&text).ok_or(io::ErrorKind::InvalidData)?;
    let wanted = given | finder as u32;
    if wanted != given {
        // SAFETY: takes integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, keyring, wanted) })?;
    }
    Ok(())
}

/// The fourth field of a key's description: type;uid;gid;permissions;name (keyctl_describe(3)).
fn permissions(description: &[u8]) -> Option<u32> {
    let field = description.split(|&byte| byte == b';').nth(3)?;
    u32::from_str_radix(str::from_utf8(field).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_read_from_a_description() {
        let described = b"keyring;0;0;3f130000;_ses.web\0";

        assert_eq!(permissions(described), Some(0x3f13_0000));
        assert_eq!(permissions(b"keyring;0;0"), None);
    }
}
