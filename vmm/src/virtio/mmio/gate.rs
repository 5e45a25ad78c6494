//! Lets the event loop hear a device's backend only while the device is live. A tap may have frames
//! and a daemon may die at any time; while nobody serves the device, the loop would spin.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

/// An epoll instance with a backend in it, or with nothing.
pub(super) struct Gate {
    epoll: OwnedFd,
    open: bool,
}

impl Gate {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, open: false })
    }

    pub(super) fn open(&mut self, backend: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if let Some(backend) = backend {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&self.epoll, backend, data, epoll::EventFlags::IN)?;
            self.open = true;
        }
        Ok(())
    }

    pub(super) fn close(&mut self, backend: Option<BorrowedFd<'_>>) {
        if self.open
            && let Some(backend) = backend
        {
            // It fails only for a descriptor that is not there.
            let _ = epoll::delete(&self.epoll, backend);
            self.open = false;
        }
    }
}

impl AsFd for Gate {
    /// What the event loop watches, for as long as the device exists.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
