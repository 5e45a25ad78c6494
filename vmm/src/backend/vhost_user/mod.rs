//! The front end of vhost-user: tells a daemon which memory, rings and eventfds to serve
//! (QEMU's docs/interop/vhost-user.rst).
//!
//! ```text
//!  new: owner, features, protocol features ──▶ start: memory, rings ──▶ the daemon serves
//!                                                ▲                          │
//!                                                └───────── stop ◀──────────┘
//! ```
//! Only what a device without backend requests needs. The crate `vhost` has all of it, but retries
//! forever when a read times out, and a daemon that hangs must not hang the machine: here every
//! answer has a deadline, and after the first failure nothing is asked again.
//!
//! Threat: a daemon that a guest took over through its requests. It already may read and write the
//! guest's memory; here it can answer nonsense, too much, or never. Answers have a fixed size, are
//! compared with the question, and only numbers are taken from them.

mod channel;
#[cfg(test)]
pub(crate) mod testing;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

pub use self::channel::VhostUserError;
use self::channel::{Channel, Request};
use super::vring::Vring;

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Feature bit: there are protocol features to negotiate, and rings start disabled.
const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 30;
/// Protocol feature: requests can ask for an acknowledgement.
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// Protocol feature: the device's own state can be reset.
const PROTOCOL_F_RESET_DEVICE: u64 = 1 << 13;

/// Most memory regions of one table.
pub const MAX_REGIONS: usize = 8;

/// Memory the daemon may map.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// Its guest-physical address.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The file it is a mapping of.
    pub file: BorrowedFd<'a>,
    /// Where in the file it starts.
    pub offset: u64,
}

/// The front end's side of the socket.
#[derive(Debug)]
pub struct FrontEnd {
    channel: Channel,
    features: u64,
    protocol_features: u64,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Stopped,
    /// Queues below this index may be in the daemon's hands.
    Started(u8),
    Lost,
}

impl FrontEnd {
    /// Takes a connected socket, and negotiates what does not depend on the guest.
    ///
    /// # Errors
    /// See [`VhostUserError`].
    pub fn new(socket: OwnedFd) -> Result<Self, VhostUserError> {
        Self::negotiate(Channel::new(socket, PATIENCE))
    }

    fn negotiate(mut channel: Channel) -> Result<Self, VhostUserError> {
        channel.send(Request::SetOwner, &[])?;
        let features = channel.get(Request::GetFeatures, &[])?;
        if features & 1 << VHOST_USER_F_PROTOCOL_FEATURES == 0 {
            return Err(VhostUserError::Features(features));
        }
        let offered = channel.get(Request::GetProtocolFeatures, &[])?;
        if offered & PROTOCOL_F_REPLY_ACK == 0 {
            return Err(VhostUserError::ProtocolFeatures(offered));
        }
        let protocol_features = offered & (PROTOCOL_F_REPLY_ACK | PROTOCOL_F_RESET_DEVICE);
        let chosen = protocol_features.to_ne_bytes();
        channel.send(Request::SetProtocolFeatures, &chosen)?;
        Ok(Self {
            channel,
            features: features & !(1 << VHOST_USER_F_PROTOCOL_FEATURES),
            protocol_features,
            state: State::Stopped,
        })
    }

    /// The virtio features the daemon offers.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Gives the daemon the memory and the rings, with the features the driver accepted.
    ///
    /// # Errors
    /// See [`VhostUserError`].
    pub fn start(
        &mut self,
        features: u64,
        regions: &[Region<'_>],
        vrings: &[Vring<'_>],
    ) -> Result<(), VhostUserError> {
        if self.state == State::Lost {
            return Err(VhostUserError::Lost);
        }
        let started = vrings.iter().map(|v| v.index + 1).max().unwrap_or(0);
        self.state = State::Started(started);
        let result = self.try_start(features, regions, vrings);
        self.settle(result)
    }

    /// Takes the rings back: once this returns the daemon touches none of them.
    ///
    /// # Errors
    /// See [`VhostUserError`]. The daemon may then still write to the guest's memory.
    pub fn stop(&mut self) -> Result<(), VhostUserError> {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Stopped => Ok(()),
            State::Started(vrings) => {
                let result = self.try_stop(vrings);
                self.settle(result)
            }
            State::Lost => {
                self.state = State::Lost;
                Err(VhostUserError::Lost)
            }
        }
    }

    fn settle(&mut self, result: Result<(), VhostUserError>) -> Result<(), VhostUserError> {
        if result.is_err() {
            self.state = State::Lost;
        }
        result
    }

    fn try_start(
        &mut self,
        features: u64,
        regions: &[Region<'_>],
        vrings: &[Vring<'_>],
    ) -> Result<(), VhostUserError> {
        let features = (features | 1 << VHOST_USER_F_PROTOCOL_FEATURES).to_ne_bytes();
        self.channel.set(Request::SetFeatures, &features, &[])?;
        self.set_memory(regions)?;
        for vring in vrings {
            self.set_vring(vring)?;
        }
        self.channel.confirm()
    }

    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<(), VhostUserError> {
        let count = match u32::try_from(regions.len()) {
            Ok(count) if regions.len() <= MAX_REGIONS => count,
            _ => return Err(VhostUserError::Regions(regions.len())),
        };
        let mut table = Vec::new();
        table.extend(count.to_ne_bytes());
        table.extend([0; 4]);
        for region in regions {
            table.extend(region.address.to_ne_bytes());
            table.extend(region.len.to_ne_bytes());
            // "User address" is only a name for the region in SET_VRING_ADDR. The guest-physical
            // address does as well, and tells nothing of our own address space.
            table.extend(region.address.to_ne_bytes());
            table.extend(region.offset.to_ne_bytes());
        }
        let files: Vec<RawFd> = regions.iter().map(|r| r.file.as_raw_fd()).collect();
        self.channel.set(Request::SetMemTable, &table, &files)
    }

    fn set_vring(&mut self, vring: &Vring<'_>) -> Result<(), VhostUserError> {
        let index = vring.index;
        let state = |value| vring_state(index, value);
        // The index, and no flags: nothing is logged.
        let mut address = state(0).to_vec();
        address.extend(vring.descriptors.to_ne_bytes());
        address.extend(vring.used.to_ne_bytes());
        address.extend(vring.available.to_ne_bytes());
        address.extend(0_u64.to_ne_bytes());
        let only_index = u64::from(index).to_ne_bytes();
        let (call, kick) = (vring.call.as_raw_fd(), vring.kick.as_raw_fd());

        let channel = &mut self.channel;
        channel.set(Request::SetVringNum, &state(vring.size.into()), &[])?;
        channel.set(
            Request::SetVringBase,
            &state(vring.next_available.into()),
            &[],
        )?;
        channel.set(Request::SetVringAddr, &address, &[])?;
        channel.set(Request::SetVringCall, &only_index, &[call])?;
        channel.set(Request::SetVringKick, &only_index, &[kick])?;
        channel.set(Request::SetVringEnable, &state(1), &[])
    }

    fn try_stop(&mut self, vrings: u8) -> Result<(), VhostUserError> {
        let channel = &mut self.channel;
        for index in 0..vrings {
            channel.set(Request::SetVringEnable, &vring_state(index, 0), &[])?;
            let _next_available = channel.get(Request::GetVringBase, &vring_state(index, 0))?;
        }
        if self.protocol_features & PROTOCOL_F_RESET_DEVICE != 0 {
            channel.set(Request::ResetDevice, &[], &[])?;
        }
        channel.confirm()
    }
}

impl AsFd for FrontEnd {
    /// The socket, to learn of the daemon's end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn vring_state(index: u8, value: u32) -> [u8; 8] {
    let [a, b, c, d] = u32::from(index).to_ne_bytes();
    let [e, f, g, h] = value.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::testing::{Daemon, FEATURES};
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn memory() -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        file
    }

    fn region(file: &std::fs::File) -> Region<'_> {
        Region {
            address: 0x1000,
            len: 0x10000,
            file: file.as_fd(),
            offset: 0,
        }
    }

    fn vring(index: u8, event: &EventFd) -> Vring<'_> {
        Vring {
            index,
            size: 16,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
            next_available: 0,
            kick: event,
            call: event,
        }
    }

    /// A peer that answers whatever it is asked with the given bytes.
    fn answering(answers: &[&[u8]]) -> OwnedFd {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for answer in answers {
            theirs.write_all(answer).unwrap();
        }
        // It stays open, and reads, until the front end is gone.
        std::thread::spawn(move || theirs.read_to_end(&mut Vec::new()));
        ours.into()
    }

    fn impatient(socket: OwnedFd) -> Result<FrontEnd, VhostUserError> {
        FrontEnd::negotiate(Channel::new(socket, SHORT))
    }

    fn answer(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        let mut message = Vec::new();
        for field in [request, flags, size] {
            message.extend(field.to_ne_bytes());
        }
        message.extend(payload);
        message
    }

    #[test]
    fn a_daemon_is_started_stopped_and_started_again() {
        for protocol in [Protocol::RESET_DEVICE | Protocol::MQ, Protocol::empty()] {
            let (running, socket) = Daemon::offering(FEATURES, protocol).run();
            let mut front_end = FrontEnd::new(socket).unwrap();
            assert_eq!(front_end.features(), FEATURES & !(1 << 30));

            let memory = memory();
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            for _ in 0..2 {
                let vrings = [vring(0, &event), vring(1, &event)];
                front_end
                    .start(1 << 32, &[region(&memory)], &vrings)
                    .unwrap();
                front_end.stop().unwrap();
                // Nothing is started: nothing to say.
                front_end.stop().unwrap();
            }
            let daemon = running.daemon();
            assert!(daemon.owned);
            assert_eq!(daemon.acked, 1 << 32 | 1 << 30);
            assert_eq!(daemon.enabled, [false; 2]);
            assert_eq!(daemon.stopped, [true; 2]);
            let resets = if protocol.contains(Protocol::RESET_DEVICE) {
                2
            } else {
                0
            };
            assert_eq!(daemon.resets, resets);
        }
    }

    #[test]
    fn a_daemon_that_refuses_is_not_asked_again() {
        let (_running, socket) = Daemon::offering(FEATURES, Protocol::empty()).run();
        let mut front_end = FrontEnd::new(socket).unwrap();
        let memory = memory();
        let started = front_end.start(1 << 5, &[region(&memory)], &[]);
        assert!(matches!(started, Err(VhostUserError::Refused(2))));
        assert!(matches!(front_end.stop(), Err(VhostUserError::Lost)));
        let started = front_end.start(0, &[region(&memory)], &[]);
        assert!(matches!(started, Err(VhostUserError::Lost)));
    }

    #[test]
    fn a_daemon_that_hangs_is_an_error_in_time() {
        let hangs = impatient(answering(&[]));
        assert!(matches!(hangs, Err(VhostUserError::Timeout(SHORT))));
        // The same with half an answer.
        let half = answer(1, 5, &FEATURES.to_ne_bytes());
        for cut in 1..half.len() {
            let hangs = impatient(answering(&[&half[..cut]]));
            assert!(matches!(hangs, Err(VhostUserError::Timeout(_))), "{cut}");
        }
    }

    #[test]
    fn a_socket_that_does_not_wait_is_waited_for() {
        let (_running, socket) = Daemon::offering(FEATURES, Protocol::empty()).run();
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        FrontEnd::new(socket).unwrap();
    }

    #[test]
    fn answers_to_another_question_are_refused() {
        let features = FEATURES.to_ne_bytes();
        for nonsense in [
            answer(2, 5, &features),
            answer(1, 1, &features),
            answer(1, 6, &features),
            answer(1, 5, &features[..7]),
            answer(1, 5, &[0; 9]),
            [&answer(1, 5, &[])[..8], &u32::MAX.to_ne_bytes()].concat(),
        ] {
            let refused = impatient(answering(&[&nonsense]));
            let error = refused.unwrap_err();
            assert!(matches!(error, VhostUserError::Answer(1)), "{error:?}");
        }
    }

    #[test]
    fn a_daemon_without_protocol_features_is_of_no_use() {
        let none = answer(1, 5, &(1_u64 << 32).to_ne_bytes());
        let refused = impatient(answering(&[&none]));
        assert!(matches!(refused, Err(VhostUserError::Features(_))));

        let some = answer(1, 5, &FEATURES.to_ne_bytes());
        let without_acknowledgement = answer(15, 5, &1_u64.to_ne_bytes());
        let socket = answering(&[&some, &without_acknowledgement]);
        let refused = impatient(socket);
        assert!(matches!(refused, Err(VhostUserError::ProtocolFeatures(1))));
    }

    #[test]
    fn a_daemon_that_died_is_an_error() {
        let (running, socket) = Daemon::offering(FEATURES, Protocol::empty()).run();
        let mut front_end = FrontEnd::new(socket).unwrap();
        running.kill();
        let memory = memory();
        let started = front_end.start(0, &[region(&memory)], &[]);
        assert!(matches!(started, Err(VhostUserError::Socket(_))));
    }

    #[test]
    fn more_memory_than_a_table_takes_is_refused() {
        let (_running, socket) = Daemon::offering(FEATURES, Protocol::empty()).run();
        let mut front_end = FrontEnd::new(socket).unwrap();
        let memory = memory();
        let started = front_end.start(0, &[region(&memory); MAX_REGIONS + 1], &[]);
        assert!(matches!(started, Err(VhostUserError::Regions(9))));
    }
}
