//! Builds the machine: a flat recipe in boot order.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_control::{Channel, Event, VmConfig};
use vmm_sys_util::eventfd::EventFd;

use super::counters::Counters;
use crate::arch::{self, ArchError};
use crate::backend::image::Image;
use crate::backend::tap::{TapError, TapFile};
use crate::bus::{Bus, SharedSlot, slot_addresses};
use crate::cmdline;
use crate::kvm::{self, KvmError};
use crate::legacy::{COM1_GSI, Ports, Serial};
use crate::loader::{self, LoadError};
use crate::memory::{self, MemoryError, Ram};
use crate::virtio::blk::Blk;
use crate::virtio::device::Device;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::mmio::{Mmio, QUEUE_NOTIFY};
use crate::virtio::net::{Net, NetError};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Dialler, Vsock, VsockError};

/// The guest's own vsock address; each guest has a device of its own, so all have the same.
const GUEST_CID: u32 = 3;

/// Why the machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or the initial RAM file system.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The architecture's part.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A size that makes no machine.
    #[error("a machine needs at least 1 vCPU and 1 MiB, not {vcpus} and {memory_mib}")]
    Size {
        /// vCPUs asked for.
        vcpus: u8,
        /// MiB asked for.
        memory_mib: u32,
    },
    /// More devices than interrupts.
    #[error("{0} devices are more than there are interrupts for")]
    TooManyDevices(usize),
    /// A disk's file.
    #[error("take the file of disk {serial:?}")]
    Disk {
        /// Which one.
        serial: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The socket device.
    #[error("make the socket device")]
    Vsock(#[from] VsockError),
    /// A network interface's tap.
    #[error("take a tap")]
    Tap(#[from] TapError),
    /// A network interface itself.
    #[error("make a network card")]
    Nic(#[from] NetError),
    /// A share's daemon.
    #[error("take the daemon of share {tag:?}")]
    Share {
        /// Which one.
        tag: String,
        /// What went wrong with it.
        #[source]
        source: FsError,
    },
    /// Eventfds, threads.
    #[error("{what}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A machine that is ready to run.
pub(super) struct Machine {
    /// Keeps guest memory mapped and KVM's objects alive.
    pub(super) _ram: Ram,
    pub(super) _vm: VmFd,
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) bus: Arc<Bus>,
    pub(super) ports: Arc<Mutex<Ports>>,
    pub(super) vsock: Arc<Mutex<Mmio<Vsock>>>,
}

pub(super) fn build(
    config: VmConfig<OwnedFd>,
    control: &Arc<Channel>,
    counters: &Arc<Counters>,
) -> Result<Machine, BuildError> {
    let VmConfig {
        vcpus, memory_mib, ..
    } = config;
    if vcpus == 0 || memory_mib == 0 {
        return Err(BuildError::Size { vcpus, memory_mib });
    }
    let ram = memory::allocate(&arch::ram_ranges(u64::from(memory_mib) << 20))?;
    let entry = loader::kernel(&ram, config.kernel)?;
    let initrd = config
        .initrd
        .map(|file| loader::initrd(&ram, file))
        .transpose()?;

    let kvm = kvm::take_over(config.kvm)?;
    let vm = kvm::create_vm(&kvm)?;
    arch::prepare_vm(&vm)?;
    // vCPUs and memory before ioeventfds: registering one starts a grace period in KVM that the
    // next vCPU or slot would wait for.
    let vcpu_fds = (0..vcpus)
        .map(|id| {
            vm.create_vcpu(id.into()).map_err(|source| KvmError::Ioctl {
                what: "create a vCPU",
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    kvm::map_memory(&vm, &ram)?;

    let mut slots: Vec<SharedSlot> = Vec::new();
    for disk in config.disks {
        let image = Image::new(disk.file).map_err(|source| BuildError::Disk {
            serial: disk.serial.clone(),
            source,
        })?;
        slots.push(slot(Blk::new(image, disk.read_only, &disk.serial), &ram)?);
    }
    let dialler = ControlDialler {
        control: Arc::clone(control),
        counters: Arc::clone(counters),
    };
    let vsock = slot(Vsock::new(GUEST_CID, Box::new(dialler))?, &ram)?;
    slots.push(vsock.clone());
    slots.push(slot(Rng, &ram)?);
    for nic in config.nics {
        let tap = TapFile::new(nic.tap)?;
        slots.push(slot(Net::new(tap, nic.mac.0, nic.mtu)?, &ram)?);
    }
    for share in config.shares {
        let fs = Fs::new(share.daemon, &share.tag).map_err(|source| BuildError::Share {
            tag: share.tag,
            source,
        })?;
        slots.push(slot(fs, &ram)?);
    }
    connect(&vm, &slots)?;

    let serial = config
        .serial
        .map(|output| serial(&vm, output))
        .transpose()?;
    let cmdline = cmdline::compose(&config.cmdline, slots.len());
    arch::write_tables(&ram, vcpus, &cmdline, initrd)?;
    for (id, vcpu) in (0..vcpus).zip(&vcpu_fds) {
        arch::prepare_vcpu(&kvm, &vm, vcpu, id, vcpus, entry)?;
    }
    Ok(Machine {
        _ram: ram,
        _vm: vm,
        vcpus: vcpu_fds,
        bus: Arc::new(Bus::new(arch::DEVICE_BASE, slots)),
        ports: Arc::new(Mutex::new(Ports::new(serial))),
        vsock,
    })
}

fn slot<D: Device>(device: D, ram: &Ram) -> Result<Arc<Mutex<Mmio<D>>>, BuildError> {
    let mmio = Mmio::new(device, ram.clone()).map_err(|source| BuildError::Host {
        what: "make a device's eventfds",
        source,
    })?;
    Ok(Arc::new(Mutex::new(mmio)))
}

/// Wires each device's interrupt and notifications to the VM.
fn connect(vm: &VmFd, slots: &[SharedSlot]) -> Result<(), BuildError> {
    let gsis = arch::FIRST_DEVICE_GSI..=arch::LAST_DEVICE_GSI;
    if slots.len() > gsis.clone().count() {
        return Err(BuildError::TooManyDevices(slots.len()));
    }
    let places = gsis.zip(slot_addresses(arch::DEVICE_BASE));
    for (slot, (gsi, base)) in slots.iter().zip(places) {
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        kvm::bind_interrupt(vm, slot.line(), gsi)?;
        kvm::bind_notifications(vm, slot.notifications(), base + QUEUE_NOTIFY)?;
    }
    Ok(())
}

fn serial(vm: &VmFd, output: OwnedFd) -> Result<Serial, BuildError> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
        BuildError::Host {
            what: "make the console's eventfd",
            source,
        }
    })?;
    kvm::bind_interrupt(vm, &line, COM1_GSI)?;
    Ok(Serial::new(output, line))
}

/// Hands the guest's connections to the shim.
struct ControlDialler {
    control: Arc<Channel>,
    counters: Arc<Counters>,
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
