//! System-call filters, one for each kind of thread, and what is said when one is hit.
//!
//! A call that is not listed raises SIGSYS instead of being carried out. The handler names the call
//! on standard error, where the shim reads it, and the signal ends the process: the handler stands
//! for one signal only, no thread may install another, and the next unlisted call, which it makes
//! itself, finds none. A thread that blocks SIGSYS dies of it all the same.
#![expect(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::mpsc;
use std::thread;

use seccompiler::sock_filter;

use super::{JailError, limits, step};

static VCPU: &[sock_filter] = &include!(concat!(env!("OUT_DIR"), "/vcpu.rs"));
static DISK: &[sock_filter] = &include!(concat!(env!("OUT_DIR"), "/disk.rs"));
static CARD: &[sock_filter] = &include!(concat!(env!("OUT_DIR"), "/card.rs"));
static EVENT_LOOP: &[sock_filter] = &include!(concat!(env!("OUT_DIR"), "/event_loop.rs"));

/// A kind of thread, with a filter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// Runs the guest.
    Vcpu,
    /// Serves devices and the control socket.
    EventLoop,
    /// Carries out what a disk is asked for.
    Disk,
    /// Moves the frames of one pair of a network card's queues.
    Card,
}

impl Thread {
    pub(super) fn filter(self) -> &'static [sock_filter] {
        match self {
            Self::Vcpu => VCPU,
            Self::EventLoop => EVENT_LOOP,
            Self::Disk => DISK,
            Self::Card => CARD,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "a vCPU's thread",
            Self::EventLoop => "the event loop",
            Self::Disk => "a disk's thread",
            Self::Card => "a network card's thread",
        }
    }
}

/// Whether threads are given filters: in a jail, always.
#[derive(Debug, Clone, Copy)]
pub struct Filters {
    enforced: bool,
}

impl Filters {
    /// None at all, for a guest that is trusted as the process itself is.
    #[must_use]
    pub fn unjailed() -> Self {
        Self { enforced: false }
    }

    /// Prepares the process for filters.
    pub(super) fn prepare() -> Result<Self, JailError> {
        one_arena();
        handle_signals().map_err(step("handle signals"))?;
        Ok(Self { enforced: true })
    }

    /// Lets the calling thread make no system call but those listed for its kind, for ever.
    ///
    /// # Errors
    /// When the kernel has no filters.
    pub fn confine(self, thread: Thread) -> io::Result<()> {
        if !self.enforced {
            return Ok(());
        }
        THREAD.set(thread.name());
        seccompiler::apply_filter(thread.filter()).map_err(io::Error::other)
    }

    /// Starts a thread called `name` that does `work` for a device, once it is confined.
    ///
    /// # Errors
    /// When the host has no thread to spare, or it cannot be confined.
    pub fn start(
        self,
        kind: Thread,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (tell, told) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name(name)
            .stack_size(128 * 1024)
            .spawn(move || {
                let confined = self.confine(kind);
                let works = confined.is_ok();
                // Whoever started this thread waits for the word.
                let _ = tell.send(confined);
                drop(tell);
                if works {
                    work();
                }
            })?;
        let died = || io::Error::other("the thread has ended");
        told.recv().map_err(|_| died())?
    }
}

impl Filters {
    /// Lets no file grow beyond `bytes`, whoever asks for it.
    ///
    /// # Errors
    /// As `setrlimit(2)`.
    pub fn limit_files(self, bytes: u64) -> io::Result<()> {
        if self.enforced {
            limits::files(bytes)?;
        }
        Ok(())
    }
}

thread_local! {
    /// Who the handler says was stopped. Constant at first and without a destructor, so a handler
    /// reads it without allocating or locking.
    static THREAD: Cell<&'static str> = const { Cell::new("a thread") };
}

/// The C library is not to give each thread a heap of its own, which would take `mprotect`.
fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes how the allocator behaves from now on, and no memory that it handed out.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// SIGSYS names the call. Faults end the process without Rust's handler, which explains a stack
/// overflow by means of calls that no filter has.
fn handle_signals() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *const SigInfo, *mut libc::c_void) = report;
    action(
        libc::SIGSYS,
        handler as libc::sighandler_t,
        libc::SA_SIGINFO | libc::SA_RESETHAND,
    )?;
    action(libc::SIGSEGV, libc::SIG_DFL, 0)?;
    action(libc::SIGBUS, libc::SIG_DFL, 0)
}

fn action(signal: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data, for which zeroes are valid: no signal is blocked besides.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is initialized; the handler has the signature that the flags promise and
    // makes async-signal-safe calls only.
    let set = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `si_code` of a SIGSYS that a filter raised (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

/// `siginfo_t` of a SIGSYS (asm-generic/siginfo.h).
#[repr(C)]
struct SigInfo {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    call_address: *const libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

/// Says which call it was and ends the process.
extern "C" fn report(_: libc::c_int, info: *const SigInfo, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t` with SA_SIGINFO. One that is not of a filter has other
    // fields there, but as much memory.
    let info = unsafe { &*info };
    let mut line = Line::default();
    line.push(b"hull-vmm: ");
    line.push(THREAD.get().as_bytes());
    if info.code == SYS_SECCOMP {
        line.push(b" made system call ");
        line.push_number(info.call);
        line.push(b", which its filter does not have\n");
    } else {
        line.push(b" was sent the signal of a filter\n");
    }
    // SAFETY: write(2) of initialized bytes; async-signal-safe.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length) };
    // No filter has it, and this signal is blocked while it is handled: the kernel ends the process.
    // SAFETY: were it carried out, it would find no program at a null path.
    unsafe { libc::syscall(libc::SYS_execve, 0, 0, 0) };
    // Reached only where there is no filter.
    // SAFETY: ends the process without running destructors; async-signal-safe.
    unsafe { libc::_exit(1) };
}

/// A line put together without allocating.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 128],
            length: 0,
        }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        let free = self.bytes.get_mut(self.length..).unwrap_or_default();
        for (place, byte) in free.iter_mut().zip(text) {
            *place = *byte;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: libc::c_int) {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b"0123456789"[(rest % 10) as usize];
            rest /= 10;
            if rest == 0 || first == 0 {
                break;
            }
        }
        if number < 0 {
            self.push(b"-");
        }
        self.push(&digits[first..]);
    }
}
