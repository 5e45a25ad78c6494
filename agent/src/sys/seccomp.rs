//! Seccomp filters that libseccomp does not make.

#![expect(unsafe_code, reason = "a call whose argument the kernel reads")]

use std::io;

use libc::sock_filter;
use nix::errno::Errno;

/// Puts the calling thread under a filter, for good (`PR_SET_SECCOMP`, prctl(2)).
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN or `no_new_privs`, `EINVAL` if it is no filter.
pub fn load_seccomp_filter(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter` during the call, and writes nothing.
    Errno::result(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    })?;
    Ok(())
}
