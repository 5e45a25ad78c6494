//! All connections: found by their ports, watched by one epoll instance, served in turn.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::connection::{Connection, Fate, Key, Outgoing};
use super::packet::Header;
use crate::backend::stream::Stream;

/// Most connections at a time, those included whose guest side is over but that still have bytes
/// for the host. Each costs at most [`super::credit::BUF_ALLOC`] bytes and one descriptor.
pub(super) const MAX_CONNECTIONS: usize = 1024;

/// Most epoll events taken at a time; the others stay for the next call.
const MAX_EVENTS: usize = 64;

/// Ports the host connects from start here, above those that anybody listens on.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Names a connection for good: ports are used again, and an epoll event may be late.
pub(super) type Id = u64;

/// The eventfd that makes the epoll instance readable without any socket.
const WAKE: Id = 0;

/// All connections.
#[derive(Debug)]
pub(super) struct Connections {
    epoll: OwnedFd,
    wake: OwnedFd,
    entries: HashMap<Id, Entry>,
    by_key: HashMap<Key, Id>,
    /// Connections with something for the guest, each once.
    ready: VecDeque<Id>,
    last_id: Id,
    next_host_port: u32,
}

#[derive(Debug)]
struct Entry {
    occupant: Occupant,
    /// What epoll was told about the socket.
    watched: Option<epoll::EventFlags>,
    /// Whether it is in `ready`.
    queued: bool,
}

#[derive(Debug)]
enum Occupant {
    Connection(Box<Connection>),
    /// The guest's side is over; the host has yet to take the last bytes.
    Unsent(Stream),
}

/// There is no room for another connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Connections {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            entries: HashMap::new(),
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            last_id: WAKE,
            next_host_port: FIRST_HOST_PORT,
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MAX_CONNECTIONS
    }

    pub(super) fn find(&self, key: Key) -> Option<Id> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Connection> {
        match &mut self.entries.get_mut(&id)?.occupant {
            Occupant::Connection(connection) => Some(connection),
            Occupant::Unsent(_) => None,
        }
    }

    /// Adds a connection whose ports are not in use.
    pub(super) fn insert(&mut self, connection: Connection) -> Result<(), Full> {
        if self.is_full() {
            return Err(Full);
        }
        self.last_id += 1;
        let id = self.last_id;
        self.by_key.insert(connection.key(), id);
        self.entries.insert(
            id,
            Entry {
                occupant: Occupant::Connection(Box::new(connection)),
                watched: None,
                queued: false,
            },
        );
        self.touch(id);
        Ok(())
    }

    /// A port of the host that has no connection to the guest's port yet.
    pub(super) fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // Ends: there are more ports than connections.
            if !self.by_key.contains_key(&Key { guest, host }) {
                return host;
            }
        }
    }

    /// Gives a packet to its connection, and forgets the connection if that was its end.
    pub(super) fn receive(&mut self, id: Id, header: &Header, data: &[u8]) -> Fate {
        let Some(connection) = self.get_mut(id) else {
            return Fate::Reset;
        };
        let fate = connection.receive(header, data);
        if fate == Fate::Lives {
            self.touch(id);
        } else {
            self.remove(id);
        }
        fate
    }

    /// Forgets a connection; bytes its guest sent are still delivered.
    pub(super) fn remove(&mut self, id: Id) {
        let Some(mut entry) = self.entries.remove(&id) else {
            return;
        };
        if let Occupant::Connection(connection) = entry.occupant {
            self.by_key.remove(&connection.key());
            self.unwatch(&entry.watched, connection.stream());
            if let Some(stream) = connection.into_unsent() {
                entry.occupant = Occupant::Unsent(stream);
                entry.watched = None;
                entry.queued = false;
                self.entries.insert(id, entry);
                self.touch(id);
            }
        }
    }

    /// Forgets every connection the driver knows of; the host's peers read end of file.
    pub(super) fn clear(&mut self) {
        let known: Vec<Id> = (self.entries.iter())
            .filter(|(_, entry)| match &entry.occupant {
                Occupant::Connection(connection) => !connection.is_news(),
                Occupant::Unsent(_) => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for id in known {
            self.remove(id);
        }
    }

    /// Takes what epoll has to report.
    pub(super) fn poll(&mut self) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        // Nothing but EINTR can fail here, and then the event loop comes again.
        let _ = epoll::wait(
            &self.epoll,
            spare,
            Some(&rustix::event::Timespec::default()),
        );
        for event in events {
            let id = event.data.u64();
            if id == WAKE {
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            } else {
                self.event(id, event.flags);
            }
        }
    }

    /// Makes the epoll instance readable: there is work that no socket will announce.
    pub(super) fn wake(&self) {
        // It fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// The packet of the connection whose turn it is, which then queues up again.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<(Id, Key, Outgoing)> {
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.queued = false;
            if let Occupant::Connection(connection) = &mut entry.occupant {
                let key = connection.key();
                let outgoing = connection.next(buffer);
                self.touch(id);
                if let Some(outgoing) = outgoing {
                    return Some((id, key, outgoing));
                }
            }
        }
        None
    }

    /// Whether anything waits for its turn.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.ready.is_empty()
    }

    fn event(&mut self, id: Id, flags: epoll::EventFlags) {
        // An event of a connection that ended since it was taken from epoll finds nothing.
        if let Some(entry) = self.entries.get_mut(&id) {
            match &mut entry.occupant {
                Occupant::Connection(connection) => connection.event(flags),
                Occupant::Unsent(stream) => {
                    stream.event(flags);
                }
            }
            self.touch(id);
        }
    }

    /// Brings the queue and epoll up to date with a connection that may have changed.
    fn touch(&mut self, id: Id) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        match &entry.occupant {
            Occupant::Connection(connection) => {
                if connection.has_outgoing() && !entry.queued {
                    entry.queued = true;
                    self.ready.push_back(id);
                }
            }
            Occupant::Unsent(stream) if stream.outbound_ended() => {
                self.drop_entry(id);
                return;
            }
            Occupant::Unsent(_) => {}
        }
        if self.watch(id).is_err() {
            // The host is out of epoll watches: nobody would hear of this socket again.
            self.drop_entry(id);
        }
    }

    fn watch(&mut self, id: Id) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(());
        };
        let Some(stream) = entry.stream() else {
            return Ok(());
        };
        let interest = stream.interest();
        let data = epoll::EventData::new_u64(id);
        match entry.watched {
            Some(watched) if watched == interest => return Ok(()),
            Some(_) => epoll::modify(&self.epoll, stream, data, interest)?,
            None => epoll::add(&self.epoll, stream, data, interest)?,
        }
        entry.watched = Some(interest);
        Ok(())
    }

    fn drop_entry(&mut self, id: Id) {
        if let Some(entry) = self.entries.remove(&id) {
            if let Occupant::Connection(connection) = &entry.occupant {
                self.by_key.remove(&connection.key());
            }
            self.unwatch(&entry.watched, entry.stream());
        }
    }

    /// Closing is not enough: another process may hold the same open file.
    fn unwatch(&self, watched: &Option<epoll::EventFlags>, stream: Option<&Stream>) {
        if let (Some(_), Some(stream)) = (watched, stream) {
            let _ = epoll::delete(&self.epoll, stream);
        }
    }
}

impl AsFd for Connections {
    /// The epoll instance: readable when [`Connections::poll`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Entry {
    fn stream(&self) -> Option<&Stream> {
        match &self.occupant {
            Occupant::Connection(connection) => connection.stream(),
            Occupant::Unsent(stream) => Some(stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::packet::Op;
    use super::*;

    const KEY: Key = Key { guest: 1, host: 2 };

    #[test]
    fn a_connection_waits_for_its_turn_once() {
        let mut connections = Connections::new().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let request = Header::default();
        let accepted = Connection::accepted(KEY, ours.into(), &request);
        connections.insert(accepted).unwrap();
        let id = connections.find(KEY).unwrap();
        let ask = Header {
            op: Op::CreditRequest as u16,
            ..Header::default()
        };
        for _ in 0..100 {
            assert_eq!(connections.receive(id, &ask, &[]), Fate::Lives);
        }
        assert_eq!(connections.ready.len(), 1);
    }

    #[test]
    fn a_port_in_use_is_not_chosen_again() {
        let mut connections = Connections::new().unwrap();
        for _ in 0..3 {
            connections.next_host_port = u32::MAX;
            let host = connections.free_host_port(1);
            let (ours, _) = UnixStream::pair().unwrap();
            let key = Key { guest: 1, host };
            assert_eq!(connections.find(key), None);
            let requested = Connection::requested(key, ours.into());
            connections.insert(requested).unwrap();
        }
        assert_eq!(connections.by_key.len(), 3);
        assert!(connections.by_key.keys().all(|k| k.host >= FIRST_HOST_PORT));
    }
}
