//! vCPU threads.
//!
//! ```text
//! start ─▶ in the guest ⇄ serving an exit ──guest resets, breaks──▶ ended: rings the bell
//!                    └─────────stop: flag, then signal──────────────▶ ended
//! ```
//! A thread that has ended runs nothing any more, and is there until the process is not.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_control::ExitReason;
use vmm_sys_util::eventfd::EventFd;

use super::counters::{Counters, count};
use crate::arch;
use crate::bus::Bus;
use crate::jail::{Filters, Thread};
use crate::kvm::{Exit, Kicker, Runner, Vcpu, kicker};
use crate::legacy::{Ports, Reset};

/// How often in succession a vCPU is let try again what KVM could not emulate. What is no accident fails
/// each time.
const TRIES: u32 = 100;

/// How long vCPUs may take to stop. One that is in the guest needs no time; one that waits for a
/// device's daemon may need all of the daemon's, and the end of the process ends it as well.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What every vCPU works with.
pub(super) struct Context {
    pub(super) bus: Bus,
    pub(super) ports: Mutex<Ports>,
    pub(super) counters: Arc<Counters>,
}

/// All vCPUs' threads.
pub(super) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    kicker: Kicker,
    /// Read by a vCPU whenever it was interrupted, and before it first runs. `SeqCst` with the
    /// signal: who was kicked sees it.
    stopping: Arc<AtomicBool>,
    /// Why a vCPU ended the machine. Disconnected once all have ended.
    reasons: Receiver<ExitReason>,
    bell: EventFd,
}

impl Vcpus {
    /// Starts a thread for each vCPU, which runs it until it ends the machine or is stopped.
    ///
    /// # Errors
    /// When the host has no eventfd, signal or thread to spare.
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        context: &Arc<Context>,
        filters: Filters,
    ) -> io::Result<Self> {
        let (sender, reasons) = mpsc::channel();
        let mut this = Self {
            threads: Vec::new(),
            kicker: kicker()?,
            stopping: Arc::new(AtomicBool::new(false)),
            reasons,
            bell: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        };
        for vcpu in vcpus {
            let name = format!("vcpu{}", vcpu.id());
            let context = Arc::clone(context);
            let stopping = Arc::clone(&this.stopping);
            let end = End {
                reason: sender.clone(),
                bell: this.bell.try_clone()?,
            };
            let body = move || {
                match filters.confine(Thread::Vcpu) {
                    Ok(()) => {
                        if let Some(reason) = run(vcpu.on_this_thread(), &context, &stopping) {
                            end.tell(reason);
                        }
                    }
                    Err(e) => end.tell(ExitReason::Failed(format!("confine a vCPU: {e}"))),
                }
                drop(end);
                // A thread that ends makes system calls that none needs before: this one leaves its
                // end to the process's, which comes next.
                loop {
                    thread::park();
                }
            };
            this.threads
                .push(thread::Builder::new().name(name).spawn(body)?);
        }
        Ok(this)
    }

    /// Readable as soon as a vCPU's thread has ended.
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Why the machine ended, of the vCPU that rang first.
    pub(super) fn reason(&self) -> ExitReason {
        let panicked = |_| ExitReason::Failed("a vCPU's thread panicked".into());
        self.reasons.try_recv().unwrap_or_else(panicked)
    }

    /// Gets all vCPUs out of the guest for good. Returns once they are, or its patience ends.
    pub(super) fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        for thread in &self.threads {
            self.kicker.kick(thread);
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reasons.recv_timeout(left) {
                // Another one that ended the machine at the same time.
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
            }
        }
    }
}

/// A thread's end, told when it is dropped, even by a panic.
struct End {
    reason: Sender<ExitReason>,
    bell: EventFd,
}

impl End {
    fn tell(&self, reason: ExitReason) {
        // The loop may have ended the machine already.
        let _ = self.reason.send(reason);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.bell.write(1);
    }
}

/// Runs a vCPU; returns why it ended the machine, or `None` when it was stopped.
fn run(mut vcpu: Runner, context: &Context, stopping: &AtomicBool) -> Option<ExitReason> {
    let id = vcpu.id();
    let exits = context.counters.exits(id);
    let failed = |why: String| Some(ExitReason::Failed(format!("vCPU {id}: {why}")));
    let mut tries = 0;
    while !stopping.load(Ordering::SeqCst) {
        let tried = std::mem::take(&mut tries);
        match vcpu.run() {
            Exit::IoIn(port, data) => {
                count(&exits.io);
                lock(&context.ports).read(port, data);
            }
            Exit::IoOut(port, data) => {
                count(&exits.io);
                if let Some(Reset) = lock(&context.ports).write(port, data) {
                    return Some(ExitReason::Reset);
                }
            }
            Exit::MmioRead(address, data) => {
                count(&exits.mmio);
                context.bus.read(address, data);
            }
            Exit::MmioWrite(address, data) => {
                count(&exits.mmio);
                context.bus.write(address, data);
            }
            Exit::Interrupted => count(&exits.other),
            Exit::Shutdown => {
                count(&exits.other);
                return Some(ExitReason::TripleFault);
            }
            Exit::Reset => {
                count(&exits.other);
                return Some(ExitReason::Reset);
            }
            Exit::PowerOff => {
                count(&exits.other);
                return Some(ExitReason::PoweredOff);
            }
            Exit::InternalError => {
                if tried == TRIES || !vcpu.may_go_on() {
                    return failed(vcpu.diagnose(arch::program_counter));
                }
                count(&exits.other);
                tries = tried + 1;
            }
            Exit::Unexpected(why) => return failed(why),
        }
    }
    None
}

fn lock(ports: &Mutex<Ports>) -> std::sync::MutexGuard<'_, Ports> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}
