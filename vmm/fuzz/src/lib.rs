//! A guest that does whatever a string of bytes tells it to one device.
//!
//! The device sits behind its registers, as in a machine; rings and buffers are in memory that the
//! guest may overwrite at any time; the event loop's part is played by [`Guest::act`] and
//! [`Guest::settle`]. A target adds its device's host side and what its requests look like.

mod memory;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use arbitrary::{Result, Unstructured};
use hull_vmm::bus::{BusDevice, Slot};
use hull_vmm::virtio::device::Device;
use hull_vmm::virtio::mmio::{Changing, Mmio};
use hull_vmm::virtio::queue::testing::Buffer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use self::memory::Lent;
pub use self::memory::wipe;

/// A file of the host's with that content, at whose end it is.
///
/// # Panics
/// When there is no memory for it.
pub fn file(content: &[u8]) -> OwnedFd {
    let mut file: File = memfd_create("file", MemfdFlags::CLOEXEC)
        .expect("memory")
        .into();
    file.write_all(content).expect("memory");
    file.into()
}

/// Rounds after which an event loop without a guest is taken to spin. A guest can leave a few
/// thousand chains behind, of which each round serves at least one.
const ROUNDS: usize = 20_000;

/// Registers a driver writes on its way to a live device, and those around them (virtio 1.3 §4.2.2).
const REGISTERS: [u64; 16] = [
    0x014, 0x020, 0x024, 0x030, 0x038, 0x044, 0x050, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094,
    0x0a0, 0x0a4, 0x100,
];

/// Descriptors of the longest chain to make available; longer ones come by way of [`Guest::poke`].
const CHAIN: usize = 6;

/// A hostile guest and its device.
pub struct Guest<D: Device> {
    mmio: Mmio<D>,
    driver: Lent,
    /// Largest size of each queue.
    sizes: Vec<u16>,
    /// Whether everything was as a driver would do it since the device went live last.
    honest: bool,
    /// Whether what an honest driver gets back is looked at.
    checked: bool,
}

impl<D: Device> Guest<D> {
    /// A guest that has not looked at `device` yet.
    pub fn new(device: D) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let driver = Lent::new(&sizes);
        let mmio = Mmio::new(device, driver.ram.clone()).expect("eventfds");
        Self {
            mmio,
            driver,
            sizes,
            honest: false,
            checked: true,
        }
    }

    /// The same before a device whose requests can take the driver's own rings away.
    pub fn unchecked(device: D) -> Self {
        Self {
            checked: false,
            ..Self::new(device)
        }
    }

    /// The device, for its host's side.
    pub fn device(&mut self) -> Changing<'_, D> {
        self.mmio.device()
    }

    /// The bus's side, as the event loop has it.
    pub fn slot(&mut self) -> &mut dyn Slot {
        &mut self.mmio
    }

    /// Resets the device and brings it to life with features of the guest's choice.
    pub fn boot(&mut self, features: u64) {
        self.set(0x070, 0);
        self.driver.restart();
        let [low, high] = halves(features | 1 << 32);
        let mut offered = 0_u64;
        for (select, chosen) in [(0, low), (1, high)] {
            self.set(0x014, select);
            let there = self.get(0x010);
            offered |= u64::from(there) << (32 * select);
            self.set(0x024, select);
            for status in [1, 3] {
                self.set(0x070, status);
            }
            self.set(0x020, chosen & there);
        }
        self.set(0x070, 11);
        for (queue, &size) in (0..).zip(&self.sizes.clone()) {
            self.set(0x030, queue);
            self.set(0x038, size.into());
            for (register, address) in [0x080, 0x090, 0x0a0]
                .into_iter()
                .zip(self.driver.rings(queue as usize))
            {
                let [low, high] = halves(address);
                self.set(register, low);
                self.set(register + 4, high);
            }
            self.set(0x044, 1);
        }
        self.set(0x070, 15);
        // Without it the fake driver's used ring is where Linux has it all the same, but a device
        // that is served elsewhere fills none.
        self.honest = features & offered & (1 << 29) != 0 && !self.slot().served_elsewhere();
    }

    /// Does one thing. `request` makes the beginning of what the device calls a request.
    ///
    /// # Errors
    /// When the bytes are used up.
    pub fn act(
        &mut self,
        bytes: &mut Unstructured<'_>,
        request: impl Fn(&mut Unstructured<'_>) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let queue = usize::from(bytes.arbitrary::<u8>()?) % self.sizes.len();
        match bytes.int_in_range(0..=15)? {
            0 => self.boot(bytes.arbitrary()?),
            1 => self.register(bytes)?,
            2 => self.poke(queue, bytes)?,
            3 => {
                self.honest = false;
                self.driver.offer(queue, bytes.arbitrary::<u16>()? % 512);
            }
            4..=9 => self.add(queue, bytes, request)?,
            10..=13 => self.kick(queue),
            14 => self.collect(),
            _ => {
                self.backend();
            }
        }
        Ok(())
    }

    /// Serves what is left until nothing is, as the event loop does.
    ///
    /// # Panics
    /// When there is always something: a guest that does nothing keeps a processor busy.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let mut idle = !self.backend();
            for queue in 0..self.sizes.len() {
                if !self.mmio.served_elsewhere() && self.mmio.notifications()[queue].read().is_ok()
                {
                    self.mmio.kicked(queue);
                    idle = false;
                }
            }
            if idle {
                return self.collect();
            }
        }
        panic!("the event loop spins");
    }

    /// Accesses one register, at any width.
    fn register(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let offset = if bytes.ratio(7, 8)? {
            *bytes.choose(&REGISTERS)?
        } else {
            u64::from(bytes.arbitrary::<u16>()? % 0x1000)
        };
        let value: u64 = bytes.arbitrary()?;
        let width = *bytes.choose(&[4, 4, 4, 4, 1, 2, 8])?;
        self.honest = false;
        self.mmio.write(offset, &value.to_le_bytes()[..width]);
        self.mmio.read(offset, &mut [0; 8][..width]);
        Ok(())
    }

    /// Overwrites a ring or a piece of memory near by.
    fn poke(&mut self, queue: usize, bytes: &mut Unstructured<'_>) -> Result<()> {
        let ring = *bytes.choose(&self.driver.rings(queue))?;
        let offset = u64::from(bytes.arbitrary::<u16>()? % 0x1000);
        let data: [u8; 16] = bytes.arbitrary()?;
        self.honest = false;
        let written = self
            .driver
            .ram
            .write_slice(&data, GuestAddress(ring + offset));
        written.expect("rings are in memory");
        Ok(())
    }

    /// Makes a chain available: a request, and descriptors of any kind behind it.
    fn add(
        &mut self,
        queue: usize,
        bytes: &mut Unstructured<'_>,
        request: impl Fn(&mut Unstructured<'_>) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let mut data = Vec::new();
        if bytes.ratio(3, 4)? {
            data.push(request(bytes)?);
        }
        let readable = data.len() + bytes.int_in_range(0..=2)?;
        while data.len() < readable {
            let length = bytes.int_in_range(0..=255)?;
            data.push(bytes.bytes(length.min(bytes.len()))?.to_vec());
        }
        let mut buffers: Vec<Buffer<'_>> = data.iter().map(|data| Buffer::Readable(data)).collect();
        for _ in 0..bytes.int_in_range(0..=3)? {
            buffers.push(if bytes.ratio(7, 8)? {
                Buffer::Writable(*bytes.choose(&[1, 12, 20, 44, 512, 513, 1526, 4096, 70_000])?)
            } else {
                self.honest = false;
                Buffer::Raw(bytes.arbitrary()?, bytes.arbitrary()?, bytes.arbitrary()?)
            });
        }
        buffers.truncate(CHAIN);
        if !buffers.is_empty() && buffers.len() <= self.driver.free(queue) {
            self.driver.add(queue, &buffers);
        }
        Ok(())
    }

    fn kick(&mut self, queue: usize) {
        if self.mmio.served_elsewhere() {
            let _ = self.mmio.notifications()[queue].write(1);
        } else {
            self.mmio.kicked(queue);
        }
    }

    /// Takes back what the device has used. An honest driver's chains come back as it made them: the
    /// fake driver checks that.
    fn collect(&mut self) {
        if self.honest && self.checked {
            for queue in 0..self.sizes.len() {
                while self.driver.used(queue).is_some() {}
            }
        }
    }

    /// Serves the device's backend, if there is something to serve.
    fn backend(&mut self) -> bool {
        let ready = self.mmio.backend().is_some_and(|backend| {
            let mut fds = [PollFd::from_borrowed_fd(backend.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        });
        if ready {
            self.mmio.backend_ready();
        }
        ready
    }

    fn set(&mut self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.mmio.read(register, &mut value);
        u32::from_le_bytes(value)
    }
}

fn halves(value: u64) -> [u32; 2] {
    [(value & 0xffff_ffff) as u32, (value >> 32) as u32]
}
