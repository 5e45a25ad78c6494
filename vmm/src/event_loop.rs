//! Waiting for descriptors: epoll, and what each one's readiness means to its owner. It knows no
//! device.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken from the kernel at a time. Level-triggered: what does not fit comes with the next.
const BATCH: usize = 64;

/// Descriptors that are waited for, each with a token that says what it means.
pub struct EventLoop<T> {
    epoll: Epoll,
    tokens: Vec<T>,
    events: Vec<EpollEvent>,
}

impl<T: Copy> EventLoop<T> {
    /// One that waits for nothing yet.
    ///
    /// # Errors
    /// As `epoll_create(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            tokens: Vec::new(),
            events: vec![EpollEvent::default(); BATCH],
        })
    }

    /// Waits for `fd` to be readable or hung up from now on. It must stay open as long as this.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn add(&mut self, fd: RawFd, token: T) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, self.tokens.len() as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.tokens.push(token);
        Ok(())
    }

    /// Waits until at least one descriptor is ready; returns the tokens of those that are, each
    /// once, so that none of them gets a second turn before all had one.
    ///
    /// # Errors
    /// As `epoll_wait(2)`, but for interruptions.
    pub fn wait(&mut self) -> io::Result<impl Iterator<Item = T>> {
        let count = loop {
            match self.epoll.wait(-1, &mut self.events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let tokens = &self.tokens;
        Ok(self.events[..count]
            .iter()
            .filter_map(|event| tokens.get(usize::try_from(event.data()).ok()?).copied()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn eventfd() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn each_ready_descriptor_comes_once_and_again_until_it_is_served() {
        let (first, second, idle) = (eventfd(), eventfd(), eventfd());
        let mut events = EventLoop::new().unwrap();
        for (fd, token) in [(&first, 'a'), (&second, 'b'), (&idle, 'c')] {
            events.add(fd.as_raw_fd(), token).unwrap();
        }
        first.write(1).unwrap();
        first.write(1).unwrap();
        second.write(1).unwrap();
        for _ in 0..2 {
            let mut ready: Vec<char> = events.wait().unwrap().collect();
            ready.sort_unstable();
            assert_eq!(ready, ['a', 'b']);
        }
        first.read().unwrap();
        assert_eq!(events.wait().unwrap().collect::<Vec<_>>(), ['b']);
    }

    #[test]
    fn a_flood_of_descriptors_comes_in_batches_and_leaves_none_out() {
        let all: Vec<EventFd> = (0..BATCH + 8).map(|_| eventfd()).collect();
        let mut events = EventLoop::new().unwrap();
        for (token, fd) in all.iter().enumerate() {
            events.add(fd.as_raw_fd(), token).unwrap();
            fd.write(1).unwrap();
        }
        let mut seen = vec![false; all.len()];
        for _ in 0..2 {
            let ready: Vec<usize> = events.wait().unwrap().collect();
            assert!(ready.len() <= BATCH);
            for token in ready {
                all[token].read().unwrap();
                seen[token] = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}
