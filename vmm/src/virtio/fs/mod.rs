//! virtio-fs (virtio 1.3 §5.11): a directory of the host, served by a vhost-user daemon.
//!
//! Neither request nor answer passes through here. The driver's notifications go to the daemon, the
//! daemon raises the interrupt, and both read and write the guest's memory. What is left: the
//! configuration space, and handing the queues over and taking them back.
//!
//! Threat: the daemon, which a guest may have taken over, can hang or die. Every question to it has
//! a deadline ([`crate::backend::vhost_user`]); its end is one event, after which the device asks
//! for a reset and never works again. The guest alone can make the VMM ask: one exchange for each
//! activation and reset.

mod config;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use self::config::Config;
pub use self::config::TagError;
use crate::backend::vhost_user::{FrontEnd, Region, VhostUserError};
use crate::memory::Ram;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::Queues;
use crate::virtio::vrings::vrings;

/// `hiprio` and one request queue (virtio 1.3 §5.11.2). Linux splits requests at the queue's size:
/// 1024 descriptors carry its largest, 256 pages of data.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Of what a daemon offers, what the queues' owner may pass on to a driver.
const FEATURES: u64 = VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why there is no file-system device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The name does not fit the configuration space.
    #[error("name a shared directory")]
    Tag(#[source] TagError),
    /// The daemon is not there or not of use.
    #[error("set up a file-system daemon")]
    Daemon(#[source] VhostUserError),
    /// The host has no descriptor to spare.
    #[error("create an epoll instance for a file-system daemon")]
    Epoll(#[source] io::Error),
}

/// The file-system device.
#[derive(Debug)]
pub struct Fs {
    config: Config,
    daemon: FrontEnd,
    /// Has one event, once: the daemon's socket hung up.
    hang_up: OwnedFd,
}

impl Fs {
    /// A device the guest mounts by the name `tag`. `socket` is connected to the daemon, which is
    /// asked for its features here.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(socket: OwnedFd, tag: &str) -> Result<Self, FsError> {
        let config = Config::new(tag).map_err(FsError::Tag)?;
        let daemon = FrontEnd::new(socket).map_err(FsError::Daemon)?;
        if daemon.features() & VERSION_1 == 0 {
            let lacking = VhostUserError::Features(daemon.features());
            return Err(FsError::Daemon(lacking));
        }
        let hang_up = watch(&daemon).map_err(FsError::Epoll)?;
        Ok(Self {
            config,
            daemon,
            hang_up,
        })
    }
}

/// Edge-triggered: a socket that stays hung up is no second event.
fn watch(daemon: &FrontEnd) -> io::Result<OwnedFd> {
    let hang_up = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = epoll::EventFlags::ET | epoll::EventFlags::RDHUP;
    epoll::add(&hang_up, daemon, epoll::EventData::new_u64(0), edge)?;
    Ok(hang_up)
}

impl Device for Fs {
    fn id(&self) -> DeviceId {
        DeviceId::FileSystem
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.daemon.features() & FEATURES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, features: u64, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let regions = regions(queues.ram())?;
        (self.daemon.start(features, &regions, &vrings(queues))).map_err(|e| failed(&e))
    }

    fn reset(&mut self) {
        self.halt();
    }

    fn serve(&mut self, _: usize, _: &mut Queues<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hang_up.as_fd())
    }

    fn serve_backend(&mut self, _: &mut Queues<'_>) -> Result<(), DeviceError> {
        let mut events = Vec::with_capacity(1);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.hang_up, spare, Some(&Timespec::default())) {
            Ok(1..) => Err(DeviceError::Backend(
                "file-system daemon is gone".to_owned(),
            )),
            Ok(0) | Err(_) => Ok(()),
        }
    }

    fn external_queues(&self) -> bool {
        true
    }

    fn halt(&mut self) {
        // When it fails the daemon is lost: the next activation says so to the driver.
        let _ = self.daemon.stop();
    }
}

/// The guest's memory as the daemon may map it.
fn regions(ram: &Ram) -> Result<Vec<Region<'_>>, DeviceError> {
    (ram.iter())
        .map(|region| {
            let file = region.file_offset().ok_or_else(|| {
                DeviceError::Backend("guest memory is not backed by a file".to_owned())
            })?;
            Ok(Region {
                address: region.start_addr().raw_value(),
                len: region.len(),
                file: file.file().as_fd(),
                offset: file.start(),
            })
        })
        .collect()
}

/// The error with its causes in one line, as the transport logs it.
fn failed(error: &VhostUserError) -> DeviceError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    DeviceError::Backend(text)
}

#[cfg(test)]
mod tests {
    use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

    use super::*;
    use crate::backend::vhost_user::testing::{Daemon, FEATURES as DAEMON_FEATURES, Running};
    use crate::virtio::queue::testing::{Buffer, Driver};

    fn fs() -> (Running, Fs) {
        let protocol = Protocol::RESET_DEVICE;
        let (running, socket) = Daemon::offering(DAEMON_FEATURES, protocol).run();
        (running, Fs::new(socket, "hull").unwrap())
    }

    fn readable(fs: &Fs) -> bool {
        let backend = fs.backend().unwrap();
        let mut fds = [rustix::event::PollFd::new(
            &backend,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn the_driver_sees_only_features_of_the_ring() {
        let (_running, fs) = fs();
        assert_eq!(fs.features(), 1 << 32 | 1 << 29 | 1 << 28);
    }

    #[test]
    fn a_daemon_serves_the_queues_and_the_driver_is_interrupted() {
        let (running, mut fs) = fs();
        let mut driver = Driver::new(&QUEUE_SIZES);
        driver.add(1, &[Buffer::Readable(b"FUSE"), Buffer::Writable(16)]);
        driver.kick(1);
        let features = fs.features();
        fs.activate(features, &mut driver.queues()).unwrap();

        assert_eq!(running.daemon().acked, features | 1 << 30);
        assert_eq!(running.daemon().enabled, [true, true]);
        assert_eq!(driver.used(1).unwrap().written, b"ESUF");
        assert!(driver.interrupted());
        assert!(!readable(&fs));

        fs.reset();
        assert_eq!(running.daemon().stopped, [true, true]);
        assert_eq!(running.daemon().resets, 1);
    }

    /// The driver has given up, and not reset it.
    #[test]
    fn a_daemon_touches_no_queue_of_a_device_that_is_halted() {
        let (running, mut fs) = fs();
        let mut driver = Driver::new(&QUEUE_SIZES);
        fs.activate(VERSION_1, &mut driver.queues()).unwrap();
        fs.halt();
        assert_eq!(running.daemon().stopped, [true, true]);
        driver.add(1, &[Buffer::Readable(b"FUSE"), Buffer::Writable(16)]);
        driver.kick(1);
        // The reset that follows finds nothing to stop, and the device works again.
        fs.reset();
        assert_eq!(running.daemon().resets, 1);
        assert!(driver.used(1).is_none());
        fs.activate(VERSION_1, &mut driver.queues()).unwrap();
        assert!(driver.used(1).is_some());
    }

    /// A driver resets its device before it uses it.
    #[test]
    fn a_reset_before_anything_was_started_says_nothing_to_the_daemon() {
        let (running, mut fs) = fs();
        fs.reset();
        assert_eq!(running.daemon().resets, 0);
    }

    #[test]
    fn the_daemon_s_end_is_reported_once() {
        let (running, mut fs) = fs();
        let mut driver = Driver::new(&QUEUE_SIZES);
        fs.activate(VERSION_1, &mut driver.queues()).unwrap();
        fs.serve_backend(&mut driver.queues()).unwrap();
        running.kill();

        assert!(readable(&fs));
        let served = fs.serve_backend(&mut driver.queues());
        assert!(matches!(served, Err(DeviceError::Backend(_))));
        assert!(!readable(&fs));

        fs.reset();
        let activated = fs.activate(VERSION_1, &mut driver.queues());
        assert!(matches!(activated, Err(DeviceError::Backend(_))));
    }

    #[test]
    fn a_daemon_without_version_1_is_refused() {
        let (_running, socket) = Daemon::offering(1 << 30, Protocol::empty()).run();
        let refused = Fs::new(socket, "hull").unwrap_err();
        assert!(matches!(
            refused,
            FsError::Daemon(VhostUserError::Features(0))
        ));
    }
}
