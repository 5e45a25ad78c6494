//! virtio-mem (virtio 1.3 §5.15): memory that is plugged and unplugged in blocks.
//!
//! The region is there from the start, as addresses. [`Mem::request`] says how much of it should be
//! memory, and the driver plugs and unplugs blocks until that is so, or as far as it can. A block that
//! is plugged costs nothing until the guest touches it; one that is unplugged goes back to the host.
//!
//! ```text
//! request(n): memory up to n ─▶ requested_size, usable_region_size ─▶ interrupt
//!                                                       driver: PLUG … until plugged_size = n
//! ```
//! Threat: a guest that uses blocks that it has not plugged. The guest's processors reach no more of
//! the region than was ever asked for: the rest is in no memory slot, so that an access is one to a
//! device that is not there. Within that, and by way of devices' buffers within the region, a touched
//! page costs the host a page, as if it were plugged: at most the region, whose size the machine's
//! description fixes. Requests have a fixed size, blocks are bits that were made room for at the start,
//! and what a long range takes to be given back is divided into turns.

mod blocks;
mod config;
mod request;

use std::io::{self, Read, Write};
use std::ops::Range;

use vm_memory::GuestAddress;

use self::blocks::{Blocks, State};
use self::config::Config;
use self::request::{BLOCK, REQUEST_LEN, RESPONSE_LEN, Request, Response};
use crate::memory::{self, Ram};
use crate::report;
use crate::virtio::device::{Device, DeviceError, DeviceId};
use crate::virtio::queue::{Chain, QueueError, Queues, reader, writer};

/// Feature bit (§5.15.3): the driver keeps its hands off blocks that are not plugged.
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u64 = 1;

const REQUESTS: usize = 0;
const QUEUE_SIZES: [u16; 1] = [64];

/// What the usable part of the region grows by: the memory blocks that Linux adds at a time
/// (`memory_hotplug`, 128 MiB on a machine that boots with less than 64 GiB).
pub const GROWTH: u64 = 128 << 20;

/// Blocks given back after which others have their turn, in one long range or many short ones.
const TURN_BLOCKS: usize = 64;

/// The host's side: makes guest addresses memory.
pub trait Backing: Send {
    /// Makes `length` bytes from `start` on memory for the guest's processors, for good. They are in
    /// the region and follow those of the call before.
    ///
    /// # Errors
    /// When the host cannot.
    fn map(&mut self, start: GuestAddress, length: u64) -> io::Result<()>;
}

/// The device.
#[derive(Debug)]
pub struct Mem<S> {
    backing: S,
    start: GuestAddress,
    /// Bytes of the region, of its usable part, and how many should be plugged.
    region: u64,
    usable: u64,
    requested: u64,
    blocks: Blocks,
    /// What an unplug request that is not answered yet has left.
    unplugging: Option<Range<usize>>,
}

impl<S: Backing> Mem<S> {
    /// A region that begins at `start` and of whose `length` bytes none is memory yet. Of a last block
    /// in part nothing is used.
    #[must_use]
    pub fn new(backing: S, start: GuestAddress, length: u64) -> Self {
        let count = usize::try_from(length / BLOCK).expect("64-bit host");
        Self {
            backing,
            start,
            region: length / BLOCK * BLOCK,
            usable: 0,
            requested: 0,
            blocks: Blocks::new(count),
            unplugging: None,
        }
    }

    /// Asks the guest to have `mib` MiB plugged, as far as the region goes. The transport has to tell
    /// the driver.
    ///
    /// # Errors
    /// When the host has no memory slot for more; then everything is as before.
    pub fn request(&mut self, mib: u32) -> io::Result<()> {
        let requested = (u64::from(mib) << 20).min(self.region) / BLOCK * BLOCK;
        let usable = requested.next_multiple_of(GROWTH).min(self.region);
        // What was usable once remains so: the driver may have plugged any of it.
        if let Some(more) = usable.checked_sub(self.usable).filter(|&more| more > 0) {
            let at = GuestAddress(self.start.0 + self.usable);
            self.backing.map(at, more)?;
            self.usable = usable;
        }
        self.requested = requested;
        Ok(())
    }

    /// Bytes that should be plugged.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// Bytes that are plugged.
    #[must_use]
    pub fn plugged(&self) -> u64 {
        self.blocks.plugged() as u64 * BLOCK
    }

    /// Blocks of the usable part.
    fn usable_blocks(&self) -> usize {
        usize::try_from(self.usable / BLOCK).expect("64-bit host")
    }

    /// Reads what a chain asks for.
    fn read(&self, ram: &Ram, chain: &Chain<'_>) -> Result<Request, QueueError> {
        let mut bytes = [0; REQUEST_LEN];
        let (index, what) = (REQUESTS, "no whole request");
        (reader(index, ram, chain)?.read_exact(&mut bytes))
            .map_err(|_| QueueError::Chain { index, what })?;
        Ok(Request::decode(&bytes, self.start.0, self.usable_blocks()))
    }

    /// Carries a request out, but for giving memory back, which is left in `unplugging`.
    ///
    /// §5.15.6.3.2: no more is plugged than is requested, and only what is not; §5.15.6.4.2: only what is
    /// plugged is unplugged; §5.15.6.5: all of it, when asked; §5.15.6.6.2: what a range is.
    fn carry_out(&mut self, request: Request) -> Response {
        match request {
            Request::Plug(range) if self.blocks.state(range.clone()) == State::Unplugged => {
                let more = range.len() as u64 * BLOCK;
                if self.plugged() + more > self.requested {
                    return Response::Nack;
                }
                self.blocks.set(range, true);
                Response::Ack
            }
            Request::Unplug(range) if self.blocks.state(range.clone()) == State::Plugged => {
                self.unplugging = Some(range);
                Response::Ack
            }
            Request::UnplugAll => {
                self.unplugging = Some(0..self.usable_blocks());
                Response::Ack
            }
            Request::State(range) => Response::State(self.blocks.state(range)),
            Request::Plug(_) | Request::Unplug(_) | Request::Wrong => Response::Error,
        }
    }

    /// Gives back up to `most` blocks of what is being unplugged; returns how many.
    fn give_back(&mut self, ram: &Ram, most: usize) -> usize {
        let Some(range) = self.unplugging.take() else {
            return 0;
        };
        let part = range.start..range.end.min(range.start + most);
        if part.end < range.end {
            self.unplugging = Some(part.end..range.end);
        }
        let count = part.len();
        let start = GuestAddress(self.start.0 + part.start as u64 * BLOCK);
        if let Err(error) = memory::give_back(ram, start, count as u64 * BLOCK) {
            // The host has less than it would have gained, and a driver that plugs them again finds
            // what was in them: its own.
            report::warn(format_args!("give unplugged memory back: {error}"));
        }
        self.blocks.set(part, false);
        count
    }
}

impl<S: Backing> Device for Mem<S> {
    fn id(&self) -> DeviceId {
        DeviceId::Memory
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = Config {
            addr: self.start.0,
            region_size: self.region,
            usable_region_size: self.usable,
            plugged_size: self.plugged(),
            requested_size: self.requested,
        };
        config.read(offset, data);
    }

    /// Plugged blocks stay so: the next driver finds them (§5.15.5).
    fn reset(&mut self) {
        self.unplugging = None;
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let ram = queues.ram();
        let mut left = TURN_BLOCKS;
        while left > 0
            && let Some(chain) = queues.pop(index)?
        {
            let response = match self.unplugging {
                // This is the chain that was put back: what it asked for is known.
                Some(_) => Response::Ack,
                None => {
                    let request = self.read(ram, &chain)?;
                    self.carry_out(request)
                }
            };
            left = left.saturating_sub(self.give_back(ram, left).max(1));
            if self.unplugging.is_some() {
                queues.unpop(index);
                break;
            }
            let answer = response.encode();
            let what = "no room for an answer";
            (writer(index, ram, &chain)?.write_all(&answer))
                .map_err(|_| QueueError::Chain { index, what })?;
            // The driver may look at `plugged_size` as soon as it finds the answer.
            queues.show_config(|config| self.read_config(0, config));
            queues.push(index, chain.head_index(), RESPONSE_LEN)?;
        }
        queues.listen(index)?;
        Ok(queues.notify(index)?)
    }
}

#[cfg(test)]
mod tests;
