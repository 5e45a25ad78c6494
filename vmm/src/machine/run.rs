//! The event loop: control socket, devices, and the end of the machine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, PoisonError};

use vmm_control::{Channel, Event, ExitReason, ReceiveError, Request};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::build::Machine;
use super::counters::Counters;
use super::vcpus::{self, Context, End};
use crate::virtio::mmio::Slot;

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct RunError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// What an event means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// The shim says something.
    Control,
    /// A vCPU ended the machine.
    Bell,
    /// The driver notified a queue.
    Kick { slot: usize, queue: usize },
    /// A device's backend is readable.
    Backend { slot: usize },
}

/// Events taken from the kernel at a time.
const BATCH: usize = 64;

pub(super) fn run(
    machine: Machine,
    control: &Arc<Channel>,
    counters: &Arc<Counters>,
) -> Result<ExitReason, RunError> {
    let error = |what| move |source| RunError { what, source };
    let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(error("make the vCPUs' eventfd"))?;
    control
        .set_nonblocking()
        .map_err(error("prepare the control socket"))?;
    let mut watched = Watched::new().map_err(error("make the event loop"))?;
    watched
        .add(control.as_raw_fd(), Token::Control)
        .and_then(|()| watched.add(bell.as_raw_fd(), Token::Bell))
        .and_then(|()| watch_devices(&mut watched, &machine))
        .map_err(error("watch a descriptor"))?;

    let (sender, ends) = mpsc::channel();
    for (id, vcpu) in machine.vcpus.into_iter().enumerate() {
        let context = Context {
            bus: Arc::clone(&machine.bus),
            ports: Arc::clone(&machine.ports),
            counters: Arc::clone(counters),
            end: End {
                reason: sender.clone(),
                bell: bell
                    .try_clone()
                    .map_err(error("share the vCPUs' eventfd"))?,
            },
        };
        vcpus::start(id, vcpu, context).map_err(error("start a vCPU's thread"))?;
    }
    counters.running();
    // The shim may be gone already; the socket tells at the first event.
    let _ = control.send(&Event::Started, &[]);

    let mut events = vec![EpollEvent::default(); BATCH];
    loop {
        let count = watched
            .wait(&mut events)
            .map_err(error("wait for events"))?;
        for event in &events[..count] {
            match watched.token(event) {
                Some(Token::Bell) => return Ok(ended(&ends)),
                Some(Token::Control) => {
                    if let Some(reason) = serve_control(control, counters, &machine.vsock) {
                        return Ok(reason);
                    }
                }
                Some(Token::Kick { slot, queue }) => {
                    Counters::count(&counters.notifications);
                    let slot = &machine.bus.slots()[slot];
                    slot.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .kicked(queue);
                }
                Some(Token::Backend { slot }) => {
                    let slot = &machine.bus.slots()[slot];
                    slot.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .backend_ready();
                }
                None => {}
            }
        }
    }
}

fn watch_devices(watched: &mut Watched, machine: &Machine) -> io::Result<()> {
    for (index, slot) in machine.bus.slots().iter().enumerate() {
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.served_elsewhere() {
            for (queue, kick) in slot.notifications().iter().enumerate() {
                watched.add(kick.as_raw_fd(), Token::Kick { slot: index, queue })?;
            }
        }
        if let Some(backend) = slot.backend() {
            watched.add(backend.as_raw_fd(), Token::Backend { slot: index })?;
        }
    }
    Ok(())
}

/// Serves what the shim has sent; tells when that ends the machine.
fn serve_control(
    control: &Channel,
    counters: &Counters,
    vsock: &std::sync::Mutex<crate::virtio::mmio::Mmio<crate::virtio::vsock::Vsock>>,
) -> Option<ExitReason> {
    loop {
        match control.receive() {
            Ok((Request::Stop, _)) => return Some(ExitReason::Stopped),
            Ok((Request::Counters, _)) => {
                let _ = control.send(&Event::Counters(counters.read()), &[]);
            }
            Ok((Request::Connect { port }, fds)) => {
                let mut slot = vsock.lock().unwrap_or_else(PoisonError::into_inner);
                for socket in fds.into_iter().take(1) {
                    slot.device().connect(port, socket);
                }
                slot.backend_ready();
            }
            Ok((Request::Boot(_), _)) => {
                return Some(ExitReason::Failed("a second boot request".into()));
            }
            Err(error) if error.would_block() => return None,
            // The shim is gone, and nobody else could want the machine.
            Err(ReceiveError::Closed) => return Some(ExitReason::Stopped),
            Err(error) => return Some(ExitReason::Failed(error.to_string())),
        }
    }
}

/// Why the machine ended, of the vCPU that rang first.
fn ended(ends: &Receiver<ExitReason>) -> ExitReason {
    ends.try_recv()
        .unwrap_or_else(|_| ExitReason::Failed("a vCPU's thread panicked".into()))
}

/// Descriptors and what they mean.
struct Watched {
    epoll: Epoll,
    tokens: Vec<Token>,
}

impl Watched {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            tokens: Vec::new(),
        })
    }

    fn add(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, self.tokens.len() as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.tokens.push(token);
        Ok(())
    }

    fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        loop {
            match self.epoll.wait(-1, events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn token(&self, event: &EpollEvent) -> Option<Token> {
        self.tokens
            .get(usize::try_from(event.data()).ok()?)
            .copied()
    }
}
