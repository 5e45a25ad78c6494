//! Getting a vCPU's thread out of the guest.
//!
//! A signal ends `KVM_RUN`, but one that arrives just before it would be lost. So its handler sets
//! the `immediate_exit` of the vCPU that the thread runs, which the kernel looks at first (KVM
//! api.rst 4.10). It is never cleared: whoever kicks a vCPU wants it to stay out.
#![expect(
    unsafe_code,
    reason = "a signal handler that writes into a vCPU's shared page"
)]

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null. Constant at first and without a
    /// destructor, so a handler reads it without allocating or locking.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Points this thread's handler at a vCPU for as long as it is there.
#[derive(Debug)]
pub(super) struct Registration {
    /// Bound to the thread that made it.
    _not_send: PhantomData<*mut u8>,
}

impl Registration {
    /// `vcpu`'s shared page is mapped until it is dropped, so the owner drops this first.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self {
            _not_send: PhantomData,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the byte is in a page that stays mapped while the pointer is set (`Registration`),
        // on this very thread. Nobody in this process reads it; the kernel does, in `KVM_RUN`.
        unsafe { flag.write_volatile(1) }
    }
}

/// Sends the signal. That one exists proves that the handler is in place.
#[derive(Debug, Clone, Copy)]
pub struct Kicker(());

/// Installs the signal's handler for the process.
///
/// # Errors
/// As `sigaction(2)`.
pub fn kicker() -> io::Result<Kicker> {
    register_signal_handler(SIGRTMIN(), handle)?;
    Ok(Kicker(()))
}

impl Kicker {
    /// Gets the thread out of the guest, and lets it not enter again. A thread that has ended does
    /// not mind.
    pub fn kick<T>(self, thread: &JoinHandle<T>) {
        // Its only error is a thread that is gone.
        let _ = thread.kill(SIGRTMIN());
    }
}
