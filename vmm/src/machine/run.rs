//! What the loop does with an event, and the order of the end.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use vmm_control::{Channel, Event, ExitReason, ReceiveError, Request};

use super::build::{Machine, SharedBalloon, SharedDisk, SharedMemory, SharedVsock};
use super::config::check_serial;
use super::counters::Counters;
use super::nics::SharedNic;
use super::vcpus::{Context, Vcpus};
use crate::backend::image::Image;
use crate::bus::{Bus, SharedSlot, Slot};
use crate::event_loop::EventLoop;
use crate::jail::{Filters, Thread};
use crate::report;

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct RunError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// What a descriptor's readiness means.
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

/// Requests of the shim served at a time; the devices have their turn in between.
const REQUESTS: usize = 16;

/// Bytes that the console's file may have: what it takes, and how it says that it takes no more.
const CONSOLE_FILE: u64 = (64 << 20) + 4096;

/// What the shim's requests reach besides the bus.
pub(super) struct Reach {
    /// All devices, in their order on the bus.
    pub(super) slots: Vec<SharedSlot>,
    pub(super) vsock: SharedVsock,
    pub(super) disks: Vec<SharedDisk>,
    pub(super) nics: Vec<SharedNic>,
    pub(super) balloon: Option<SharedBalloon>,
    pub(super) memory: Option<SharedMemory>,
}

impl Reach {
    /// Notes what the devices have counted. One that a vCPU is at, which may wait for a daemon, keeps what
    /// was noted last: nobody waits for a count.
    fn note(&self, counters: &Counters) {
        if let Some(mut slot) = self.memory.as_ref().and_then(at_once) {
            let device = slot.device();
            counters.memory(device.requested(), device.plugged());
        }
        let slots = self
            .slots
            .iter()
            .map(|slot| Some(at_once(slot)?.counters()));
        counters.devices(slots);
    }
}

/// What a lock guards, unless somebody holds it.
fn at_once<T: ?Sized>(lock: &Arc<Mutex<T>>) -> Option<MutexGuard<'_, T>> {
    match lock.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Runs the machine to its end. The vCPUs have left the guest when it returns.
///
/// # Errors
/// When the host lacks what it needs for that.
pub(super) fn run(
    machine: Machine,
    control: &Channel,
    counters: &Arc<Counters>,
    filters: Filters,
) -> Result<ExitReason, RunError> {
    let error = |what| move |source| RunError { what, source };
    let Machine {
        vcpus,
        bus,
        ports,
        reach,
        last_words,
        largest_file,
    } = machine;
    control
        .set_nonblocking()
        .map_err(error("prepare the control socket"))?;
    let mut events = EventLoop::new().map_err(error("make the event loop"))?;
    events
        .add(control.as_raw_fd(), Token::Control)
        .and_then(|()| watch_devices(&mut events, &bus))
        .map_err(error("watch a descriptor"))?;

    filters
        .limit_files(largest_file.max(CONSOLE_FILE))
        .map_err(error("limit the size of files"))?;

    let context = Arc::new(Context {
        bus,
        ports,
        counters: Arc::clone(counters),
    });
    let vcpus = Vcpus::start(vcpus, &context, filters);
    let vcpus = vcpus.map_err(error("start the vCPUs' threads"))?;
    events
        .add(vcpus.bell().as_raw_fd(), Token::Bell)
        .map_err(error("watch the vCPUs"))?;
    // Not earlier: a thread's filter is also its children's, and this one starts no thread.
    filters
        .confine(Thread::EventLoop)
        .map_err(error("confine the event loop to its system calls"))?;
    counters.running();
    // The shim may be gone already; the socket tells at the first event.
    let _ = control.send(&Event::Started, &[]);

    let reason = 'machine: loop {
        for token in events.wait().map_err(error("wait for events"))? {
            match token {
                Token::Bell => break 'machine vcpus.reason(),
                Token::Control => {
                    if let Some(reason) = serve_control(control, counters, &reach) {
                        break 'machine reason;
                    }
                }
                Token::Kick { slot, queue } => {
                    counters.notified();
                    context.bus.with(slot, |slot| slot.kicked(queue));
                }
                Token::Backend { slot } => context.bus.with(slot, |slot| slot.backend_ready()),
            }
        }
    };
    vcpus.stop();
    reach.note(counters);
    // A panic's last act is a reset.
    Ok(match (reason, last_words.read()) {
        (ExitReason::Reset, Some(last)) => last,
        (reason, _) => reason,
    })
}

fn watch_devices(events: &mut EventLoop<Token>, bus: &Bus) -> io::Result<()> {
    for index in 0..bus.len() {
        bus.with(index, |slot| {
            if !slot.served_elsewhere() {
                let kicks = slot.notifications().iter().enumerate();
                for (queue, kick) in kicks.filter(|&(queue, _)| !slot.has_thread(queue)) {
                    events.add(kick.as_raw_fd(), Token::Kick { slot: index, queue })?;
                }
            }
            match slot.backend() {
                Some(backend) => events.add(backend.as_raw_fd(), Token::Backend { slot: index }),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// Serves what the shim has sent; tells when that ends the machine.
pub(super) fn serve_control(
    control: &Channel,
    counters: &Counters,
    reach: &Reach,
) -> Option<ExitReason> {
    for _ in 0..REQUESTS {
        match control.receive() {
            Ok((Request::Stop, _)) => return Some(ExitReason::Stopped),
            Ok((Request::Counters, _)) => {
                reach.note(counters);
                // A shim that does not read its answers gets none.
                let _ = control.send(&Event::Counters(counters.read()), &[]);
            }
            Ok((Request::Connect { port }, fds)) => {
                let mut slot = reach.vsock.lock().unwrap_or_else(PoisonError::into_inner);
                // One socket for one connection; any more are closed.
                if let Some(socket) = fds.into_iter().next() {
                    slot.device().connect(port, socket);
                }
                slot.backend_ready();
            }
            Ok((Request::Balloon { mib }, _)) => {
                if let Some(balloon) = &reach.balloon {
                    let mut slot = balloon.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.device().set_target(mib);
                    slot.config_changed();
                }
            }
            Ok((Request::Memory { mib }, _)) => {
                if let Some(memory) = &reach.memory {
                    let mut slot = memory.lock().unwrap_or_else(PoisonError::into_inner);
                    let requested = slot.device().request(mib);
                    match requested {
                        Ok(()) => slot.config_changed(),
                        // The guest goes on with what it has.
                        Err(error) => report::warn(format_args!("make room for memory: {error}")),
                    }
                }
            }
            Ok((Request::Plug { nic }, fds)) => {
                let plugged = plug(reach.nics.get(nic), fds);
                if let Err(reason) = plugged {
                    return Some(ExitReason::Failed(format!(
                        "plug network interface {nic}: {reason}"
                    )));
                }
            }
            Ok((
                Request::PlugDisk {
                    disk,
                    read_only,
                    serial,
                },
                fds,
            )) => {
                let plugged = plug_disk(reach.disks.get(disk), fds, &serial, read_only);
                if let Err(reason) = plugged {
                    return Some(ExitReason::Failed(format!("plug disk {disk}: {reason}")));
                }
            }
            Ok((Request::UnplugDisk { disk }, _)) => {
                if let Err(reason) = unplug_disk(reach.disks.get(disk)) {
                    return Some(ExitReason::Failed(format!("unplug disk {disk}: {reason}")));
                }
            }
            // The two programs do not agree on what was said, so nothing they say can be trusted.
            Ok((Request::Boot(_), _)) => {
                return Some(ExitReason::Failed("a second boot request".into()));
            }
            Err(error) if error.would_block() => return None,
            // The shim is gone, and nobody else could want the machine.
            Err(ReceiveError::Closed) => return Some(ExitReason::Stopped),
            Err(error) => return Some(ExitReason::Failed(report::chain(&error))),
        }
    }
    None
}

fn plug(nic: Option<&SharedNic>, fds: Vec<OwnedFd>) -> Result<(), String> {
    let nic = nic.ok_or("there is none of that number")?;
    if fds.is_empty() {
        return Err("no tap came with the request".to_owned());
    }
    nic.plug(fds).map_err(|e| report::chain(&e))
}

fn plug_disk(
    disk: Option<&SharedDisk>,
    fds: Vec<OwnedFd>,
    serial: &str,
    read_only: bool,
) -> Result<(), String> {
    let disk = disk.ok_or("there is none of that number")?;
    let file = (fds.into_iter().next()).ok_or("no file came with the request")?;
    check_serial(serial).map_err(|e| report::chain(&e))?;
    let mut slot = disk.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.device().is_inserted() {
        return Err("it has a file".to_owned());
    }
    let image = Image::of_block_device(file, read_only).map_err(|e| report::chain(&e))?;
    slot.device().insert(image, serial);
    Ok(())
}

fn unplug_disk(disk: Option<&SharedDisk>) -> Result<(), String> {
    let disk = disk.ok_or("there is none of that number")?;
    let mut slot = disk.lock().unwrap_or_else(PoisonError::into_inner);
    slot.withdraw("its file was taken away");
    slot.device().eject();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use vmm_control::{FdIndex, VmConfig};

    use super::super::testing::Headless;
    use super::*;

    fn machine() -> (Channel, Headless) {
        let (shim, vmm) = Channel::pair().unwrap();
        (shim, Headless::new(vmm))
    }

    fn failed(reason: Option<ExitReason>) -> String {
        match reason {
            Some(ExitReason::Failed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn stop_and_a_shim_that_is_gone_end_the_machine_and_silence_does_not() {
        let (shim, machine) = machine();
        assert_eq!(machine.serve(), None);
        shim.send(&Request::Stop, &[]).unwrap();
        assert_eq!(machine.serve(), Some(ExitReason::Stopped));
        drop(shim);
        assert_eq!(machine.serve(), Some(ExitReason::Stopped));
    }

    #[test]
    fn counters_are_answered_and_a_balloon_gets_its_target() {
        let (shim, machine) = machine();
        shim.send(&Request::Counters, &[]).unwrap();
        shim.send(&Request::Balloon { mib: 3 }, &[]).unwrap();
        assert_eq!(machine.serve(), None);
        let (event, _) = shim.receive::<Event>().unwrap();
        let Event::Counters(counters) = event else {
            panic!("{event:?}");
        };
        assert_eq!(counters.devices.len(), 1);
        assert_eq!(machine.balloon_target(), 3 * 256);
    }

    #[test]
    fn what_cannot_be_trusted_or_carried_out_ends_the_machine_with_the_reason() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let plug = |nic, fds: &[_]| {
            let (shim, machine) = machine();
            shim.send(&Request::Plug { nic }, fds).unwrap();
            failed(machine.serve())
        };
        assert!(plug(0, &[ours.as_fd()]).contains("tap"), "a socket is none");
        assert!(plug(0, &[]).contains("no tap"));
        assert!(plug(1, &[ours.as_fd()]).contains("none of that number"));

        let plug_disk = |disk, fds: &[_]| {
            let (shim, machine) = machine();
            let (read_only, serial) = (true, "kelp".to_owned());
            let request = Request::PlugDisk {
                disk,
                read_only,
                serial,
            };
            shim.send(&request, fds).unwrap();
            failed(machine.serve())
        };
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(plug_disk(0, &[null.as_fd()]).contains("no block device"));
        assert!(plug_disk(0, &[]).contains("no file"));
        assert!(plug_disk(1, &[null.as_fd()]).contains("none of that number"));

        let (shim, machine) = machine();
        let text = r#"{"kvm":0,"kernel":1,"initrd":null,"cmdline":"","vcpus":1,"memory_mib":16,
            "serial":null,"disks":[],"nics":[],"shares":[]}"#;
        let config: VmConfig<FdIndex> = serde_json::from_str(text).unwrap();
        shim.send(&Request::Boot(Box::new(config)), &[]).unwrap();
        assert!(failed(machine.serve()).contains("second boot"));
    }

    #[test]
    fn a_flood_of_requests_is_served_in_turns() {
        let (shim, machine) = machine();
        shim.set_nonblocking().unwrap();
        let mut sent = 0;
        while shim.send(&Request::Balloon { mib: sent }, &[]).is_ok() {
            sent += 1;
        }
        assert!(sent as usize > REQUESTS, "{sent}");
        assert_eq!(machine.serve(), None);
        assert_eq!(machine.balloon_target() as usize, (REQUESTS - 1) * 256);
    }

    /// Without a driver a connect waits; more descriptors than one are closed, and so is none missed.
    #[test]
    fn a_connect_takes_one_socket_and_closes_the_others() {
        let (shim, machine) = machine();
        let (kept, its_end) = UnixStream::pair().unwrap();
        let (mut spare, spare_end) = UnixStream::pair().unwrap();
        let fds = [its_end.as_fd(), spare_end.as_fd()];
        shim.send(&Request::Connect { port: 7 }, &fds).unwrap();
        shim.send(&Request::Connect { port: 7 }, &[]).unwrap();
        drop((its_end, spare_end));
        assert_eq!(machine.serve(), None);
        assert!(matches!(spare.read(&mut [0]), Ok(0)), "closed");
        kept.set_nonblocking(true).unwrap();
        let waits = (&kept).read(&mut [0]).unwrap_err();
        assert_eq!(waits.kind(), io::ErrorKind::WouldBlock);
    }
}
