//! What depends on the processor's architecture: addresses, tables, registers, interrupt
//! controllers. Each architecture is a folder with the same names in it; nobody else asks which one
//! it is:
//!
//! | name | what |
//! |---|---|
//! | `DEVICE_BASE`, `LAST_WORDS`, `device_gsis`, `MAX_DEVICES`, `SERIAL_GSI`, `MAX_VCPUS` | places and bounds |
//! | `REGISTERS_IN_MEMORY` | how a driver may read a device's registers |
//! | `ram_ranges`, `hotplug_range`, `vm_type` | where memory is or may be plugged, and what KVM has to know of it |
//! | `filled_first` | what of memory the loader and Linux fill, whatever the guest does |
//! | `Kernel`, `load_kernel`, `initrd_address` | the kernel's file in memory |
//! | `prepare_vm`, `Interrupts` | interrupt controllers, before and after the vCPUs are made |
//! | `attach_legacy` | what is no virtio device |
//! | `write_tables` | what the kernel is told: a [`Description`] |
//! | `supported`, `Supported`, `prepare_vcpu` | the processor's features and first registers |
//! | `program_counter` | where a vCPU that failed was |

// The other architecture's is compiled for unit tests and fuzz targets, without what needs its KVM.
#[cfg(any(target_arch = "aarch64", test, feature = "testing"))]
#[cfg_attr(
    not(any(target_arch = "aarch64", test)),
    expect(dead_code, reason = "compiled for fuzz targets alone")
)]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

use vm_memory::GuestAddress;

/// What the guest's kernel is told of its machine.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    /// Processors, at least one.
    pub vcpus: u8,
    /// The words that the shim asks for on the command line.
    pub cmdline: &'a str,
    /// Address and length of the initial RAM file system.
    pub initrd: Option<(GuestAddress, u64)>,
    /// Registers and interrupt of each virtio device, in the order in which they are to be probed.
    pub devices: &'a [(u64, u32)],
    /// Whether there is a console.
    pub serial: bool,
}
