//! What the process may use up, and what of its parent's it keeps.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getpid, setrlimit};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use super::{JailError, step};

/// Descriptors: a socket for each vsock connection, of which there are at most 1024, its other end
/// until the shim has taken it, and what the machine is made of.
const DESCRIPTORS: u64 = 4096;

/// Threads: as many vCPUs as a machine may have, four for each of a dozen disks, three for each of four cards, the event loop, what KVM and vhost-net start in
/// our name, and room.
const THREADS: u64 = 254 + 80;

/// Closes what a parent left open, but for the standard streams and `control`.
#[expect(unsafe_code, reason = "closing descriptors by their numbers")]
pub(super) fn close_all_but(control: i32) -> Result<(), JailError> {
    let control = libc::c_uint::try_from(control).unwrap_or(libc::c_uint::MAX);
    for (first, last) in [
        (3, control.saturating_sub(1)),
        (control.saturating_add(1), libc::c_uint::MAX),
    ] {
        if first > last {
            continue;
        }
        // SAFETY: this process has opened nothing yet but `control`, which is not in the range: no
        // one owns what is closed.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed != 0 {
            return Err(step("close inherited descriptors")(
                io::Error::last_os_error(),
            ));
        }
    }
    Ok(())
}

/// Sets the limits, soft and hard. Not limited: address space, which the guest's memory is; memory
/// itself, which is the cgroup's to limit. File sizes come later ([`files`]).
pub(super) fn set() -> Result<(), JailError> {
    let limits = [
        // Guest memory is left out of dumps anyway; keys of the control protocol are not in one.
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Nproc, THREADS),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limit).map_err(step("set resource limits"))?;
    }
    Ok(())
}

/// Lets no file grow beyond `bytes`: what is to be written is as large by now as it may become.
pub(super) fn files(bytes: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    Ok(setrlimit(Resource::Fsize, limit)?)
}

/// Gives this process, with all its threads to come, a core-scheduling cookie of its own.
pub(super) fn share_no_core() -> Result<(), JailError> {
    match create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup) {
        // No core of this host runs two threads at a time, so none can be shared.
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(e) => Err(JailError::CoreScheduling(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::MAX_VCPUS;

    #[test]
    fn each_vcpu_that_a_machine_may_have_has_its_thread() {
        assert!(THREADS >= u64::from(MAX_VCPUS) + 80);
    }
}
