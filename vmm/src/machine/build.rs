//! Builds the machine: a flat recipe in boot order.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_control::{Channel, Event, RateLimit, VmConfig};
use vmm_sys_util::eventfd::EventFd;

use super::address_space::{AddressSpace, AddressSpaceError};
use super::config::{self, ConfigError};
use super::counters::Counters;
use super::last_words::{self, LastWords};
use super::nics::SharedNic;
use super::run::Reach;
use crate::arch::{self, ArchError, Description, Interrupts, KernelError};
use crate::backend::image::{Image, ImageError};
use crate::backend::tap::TapError;
use crate::backend::vhost_net::VhostError;
use crate::bus::{Bus, RegisterPage, SharedSlot};
use crate::jail::Filters;
use crate::kvm::{self, KvmError, MemorySlots, Vcpu, Vm};
use crate::legacy::{Ports, Serial};
use crate::loader::initrd::{self, InitrdError};
use crate::memory::{self, Ram};
use crate::rate_limit::RateLimiter;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::Blk;
use crate::virtio::device::Device;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::mem::{self, Mem};
use crate::virtio::mmio::{INTERRUPT_ACK, Mmio, QUEUE_NOTIFY, USED_BUFFER};
use crate::virtio::net::{NetError, PlugError};
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Dialler, Vsock, VsockError};

/// The guest's own vsock address; each guest has a device of its own, so all have the same.
const GUEST_CID: u32 = 3;

/// Why the machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What was asked for is no machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Memory, and what lies where.
    #[error(transparent)]
    AddressSpace(#[from] AddressSpaceError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initial RAM file system.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The architecture's part.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A disk's file.
    #[error("take the file of disk {number} ({serial:?})")]
    Disk {
        /// Which one, from 0.
        number: usize,
        /// Its name.
        serial: String,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// The socket device.
    #[error("make the socket device")]
    Vsock(#[from] VsockError),
    /// A network interface's tap.
    #[error("take a tap")]
    Tap(#[from] TapError),
    /// What moves its frames.
    #[error("have the host's kernel move a network card's frames")]
    Vhost(#[from] VhostError),
    /// A network interface itself.
    #[error("make a network card")]
    Nic(#[from] NetError),
    /// A network interface and its tap.
    #[error("connect a network card to its tap")]
    Plug(#[from] PlugError),
    /// A share's daemon.
    #[error("take the daemon of share {tag:?}")]
    Share {
        /// Which one.
        tag: String,
        /// What went wrong with it.
        #[source]
        source: FsError,
    },
    /// Eventfds.
    #[error("{what}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The socket device, which the control socket reaches besides the bus.
pub(super) type SharedVsock = Arc<Mutex<Mmio<Vsock>>>;

/// A disk, likewise.
pub(super) type SharedDisk = Arc<Mutex<Mmio<Blk>>>;

/// The balloon, likewise.
pub(super) type SharedBalloon = Arc<Mutex<Mmio<Balloon>>>;

/// The memory device, likewise.
pub(super) type SharedMemory = Arc<Mutex<Mmio<Mem<MemorySlots>>>>;

/// A machine that is ready to run.
pub(super) struct Machine {
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) bus: Bus,
    pub(super) ports: Mutex<Ports>,
    pub(super) reach: Reach,
    pub(super) last_words: LastWords,
    /// Bytes of the largest file that is written: memory or a disk.
    pub(super) largest_file: u64,
}

pub(super) fn build(
    config: VmConfig<OwnedFd>,
    control: &Arc<Channel>,
    counters: &Arc<Counters>,
    filters: Filters,
) -> Result<Machine, BuildError> {
    config::check(&config)?;
    let space = AddressSpace::new(config.memory_mib, config.hotplug_mib, config.pmems)?;
    let AddressSpace {
        ram,
        boot_ram,
        hotplug,
        shown,
        ..
    } = &space;
    let kernel = File::from(config.kernel);
    // What is wrong with the file the loader tells.
    let bytes = memory::file_len(&kernel).unwrap_or(0);
    for range in arch::filled_first(boot_ram, bytes) {
        memory::use_large_pages(boot_ram, range);
    }
    let kernel = arch::load_kernel(boot_ram, kernel.into())?;
    let place = |len| arch::initrd_address(boot_ram, &kernel, len);
    let initrd = (config.initrd)
        .map(|file| initrd::load(boot_ram, file, place))
        .transpose()?;

    let kvm = kvm::take_over(config.kvm)?;
    let (vm, memory_slots, interrupts, vcpus) = processors(&kvm, &space, config.vcpus)?;

    let mut slots: Vec<SharedSlot> = Vec::new();
    for &(start, bytes) in &space.pmems {
        slots.push(slot(Pmem::new(start, bytes), ram)?);
    }
    let mut disks = Vec::new();
    let mut largest_file = memory::len(ram);
    for (number, disk) in config.disks.into_iter().enumerate() {
        let limit = limiter(disk.rate_limit)?;
        let image = Image::new(disk.file, disk.read_only).map_err(|source| BuildError::Disk {
            number,
            serial: disk.serial.clone(),
            source,
        })?;
        largest_file = largest_file.max(image.len());
        let queues = config.vcpus.into();
        let blk = Blk::new(image, &disk.serial, queues, limit, filters).map_err(disk_threads)?;
        disks.push(slot(blk, ram)?);
    }
    for _ in 0..config.spare_disks {
        disks.push(slot(Blk::spare(filters).map_err(disk_threads)?, ram)?);
    }
    slots.extend(disks.iter().map(|disk| disk.clone() as SharedSlot));
    let nics = (config.nics.into_iter())
        .map(|nic| SharedNic::new(nic, ram, filters))
        .collect::<Result<Vec<_>, _>>()?;
    slots.extend(nics.iter().map(SharedNic::slot));
    let dialler = Box::new(ControlDialler {
        control: Arc::clone(control),
        counters: Arc::clone(counters),
    });
    let vsock = slot(Vsock::new(GUEST_CID, dialler)?, ram)?;
    slots.push(vsock.clone());
    slots.push(slot(Rng::new(limiter(config.entropy_limit)?), ram)?);
    for share in config.shares {
        let tag = share.tag;
        let fs = Fs::new(share.daemon, &tag).map_err(|source| BuildError::Share { tag, source })?;
        slots.push(slot(fs, ram)?);
    }
    let balloon = (config.balloon)
        .then(|| slot(Balloon::new(), ram))
        .transpose()?;
    slots.extend(balloon.clone().map(|balloon| balloon as SharedSlot));
    let memory = (*hotplug)
        .map(|(start, length)| slot(Mem::new(memory_slots, start, length as u64), ram))
        .transpose()?;
    slots.extend(memory.clone().map(|memory| memory as SharedSlot));
    let mut bus = Bus::new(arch::DEVICE_BASE, slots.clone());
    show_registers(shown, &bus);
    connect(&vm, &bus)?;
    let serial = (config.serial)
        .map(|output| serial(&vm, output))
        .transpose()?;

    let devices: Vec<_> = bus.addresses().zip(arch::device_gsis()).collect();
    let description = Description {
        vcpus: config.vcpus,
        cmdline: &format!("{} {}", space.last_words.cmdline(), config.cmdline),
        initrd,
        devices: &devices,
        serial: serial.is_some(),
    };
    arch::write_tables(boot_ram, &interrupts, &description)?;
    let supported = arch::supported(&kvm, shown)?;
    for vcpu in &vcpus {
        arch::prepare_vcpu(&vm, &supported, vcpu, config.vcpus, &kernel)?;
    }
    let ports = arch::attach_legacy(&mut bus, serial);
    Ok(Machine {
        vcpus,
        bus,
        ports: Mutex::new(ports),
        reach: Reach {
            slots,
            vsock,
            disks,
            nics,
            balloon,
            memory,
        },
        last_words: space.last_words,
        largest_file,
    })
}

/// Creates the VM with its vCPUs and the memory that it starts with. Both come before any ioeventfd: registering one starts
/// a grace period in KVM, which the next vCPU or memory slot would wait for.
fn processors(
    kvm: &Kvm,
    space: &AddressSpace,
    count: u8,
) -> Result<(Vm, MemorySlots, Interrupts, Vec<Vcpu>), BuildError> {
    let shown = &space.shown;
    let vm = Vm::new(kvm, arch::vm_type(kvm, shown)?, shown.clone())?;
    let interrupts = arch::prepare_vm(&vm, count)?;
    let vcpus = (0..count)
        .map(|id| vm.create_vcpu(id))
        .collect::<Result<_, _>>()?;
    interrupts.start(count)?;
    let mut slots = vm.memory_slots();
    for region in space.boot_ram.iter() {
        (slots.add(region.start_addr(), region.len())).map_err(KvmError::Memory)?;
    }
    let last_words = GuestAddress(arch::LAST_WORDS);
    (slots.add(last_words, last_words::LEN as u64)).map_err(KvmError::Memory)?;
    for &(start, bytes) in &space.read_only {
        (slots.add_read_only(start, bytes)).map_err(KvmError::Memory)?;
    }
    Ok((vm, slots, interrupts, vcpus))
}

/// Has the devices write their registers where the guest reads them, if it does.
fn show_registers(shown: &Ram, bus: &Bus) {
    for (index, base) in bus.addresses().enumerate() {
        if let Some(page) = RegisterPage::new(shown.clone(), base) {
            bus.with(index, |slot| slot.show_in(page));
        }
    }
}

fn disk_threads(source: io::Error) -> BuildError {
    BuildError::Host {
        what: "start a disk's threads",
        source,
    }
}

pub(super) fn limiter(limit: RateLimit) -> Result<RateLimiter, BuildError> {
    RateLimiter::new(limit).map_err(|source| BuildError::Host {
        what: "make a rate limit's timer",
        source,
    })
}

pub(super) fn slot<D: Device>(device: D, ram: &Ram) -> Result<Arc<Mutex<Mmio<D>>>, BuildError> {
    let mmio = Mmio::new(device, ram.clone()).map_err(|source| BuildError::Host {
        what: "make a device's eventfds",
        source,
    })?;
    Ok(Arc::new(Mutex::new(mmio)))
}

/// Wires each device's interrupt and notifications to the VM.
fn connect(vm: &Vm, bus: &Bus) -> Result<(), BuildError> {
    // Nobody reads it: what is acknowledged is of no interest.
    let nobody = eventfd("make the devices' eventfd")?;
    let places = bus.addresses().zip(arch::device_gsis());
    for (index, (base, gsi)) in places.enumerate() {
        bus.with(index, |slot| {
            vm.bind_interrupt(slot.line(), gsi)?;
            vm.bind_store(&nobody, base + INTERRUPT_ACK, USED_BUFFER)?;
            (0..)
                .zip(slot.notifications())
                .try_for_each(|(queue, notification)| {
                    vm.bind_store(notification, base + QUEUE_NOTIFY, queue)
                })
        })?;
    }
    Ok(())
}

fn eventfd(what: &'static str) -> Result<EventFd, BuildError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|source| BuildError::Host { what, source })
}

fn serial(vm: &Vm, output: OwnedFd) -> Result<Serial, BuildError> {
    let line = eventfd("make the console's eventfd")?;
    vm.bind_interrupt(&line, arch::SERIAL_GSI)?;
    Ok(Serial::new(output, line))
}

impl mem::Backing for MemorySlots {
    fn map(&mut self, start: GuestAddress, length: u64) -> io::Result<()> {
        self.add(start, length)
    }
}

/// Hands the guest's connections to the shim.
pub(super) struct ControlDialler {
    pub(super) control: Arc<Channel>,
    pub(super) counters: Arc<Counters>,
}

impl Dialler for ControlDialler {
    fn dialled(&mut self, port: u32, socket: OwnedFd) -> io::Result<()> {
        self.counters.dialled();
        // A shim that does not keep up costs the guest the connection, not the loop its time.
        self.control
            .send(&Event::Dialled { port }, &[socket.as_fd()])
            .map_err(io::Error::other)
    }
}
