//! vCPU threads.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_control::ExitReason;
use vmm_sys_util::eventfd::EventFd;

use super::counters::Counters;
use crate::bus::Bus;
use crate::legacy::{Ports, Reset};

/// What a vCPU works with.
pub(super) struct Context {
    pub(super) bus: Arc<Bus>,
    pub(super) ports: Arc<Mutex<Ports>>,
    pub(super) counters: Arc<Counters>,
    pub(super) end: End,
}

/// Tells the event loop that a vCPU ended the machine.
pub(super) struct End {
    pub(super) reason: Sender<ExitReason>,
    pub(super) bell: EventFd,
}

/// Starts the thread of vCPU `id`, which runs it until it ends the machine.
pub(super) fn start(id: usize, mut vcpu: VcpuFd, context: Context) -> io::Result<()> {
    thread::Builder::new()
        .name(format!("vcpu{id}"))
        .spawn(move || {
            let reason = run(&mut vcpu, &context);
            // The loop may have ended the machine already.
            let _ = context.end.reason.send(reason);
            let _ = context.end.bell.write(1);
        })?;
    Ok(())
}

fn run(vcpu: &mut VcpuFd, context: &Context) -> ExitReason {
    let counters = &context.counters;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                Counters::count(&counters.exits_io);
                context
                    .ports
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                Counters::count(&counters.exits_io);
                let mut ports = context.ports.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(Reset) = ports.write(port, data) {
                    return ExitReason::Reset;
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                Counters::count(&counters.exits_mmio);
                context.bus.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                Counters::count(&counters.exits_mmio);
                context.bus.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => {
                Counters::count(&counters.exits_other);
                return ExitReason::TripleFault;
            }
            Ok(VcpuExit::Intr) => Counters::count(&counters.exits_other),
            Ok(other) => return ExitReason::Failed(format!("vCPU stopped at {other:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                Counters::count(&counters.exits_other);
            }
            Err(e) => return ExitReason::Failed(format!("run a vCPU: {e}")),
        }
    }
}
