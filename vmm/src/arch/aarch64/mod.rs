//! aarch64: a board without firmware, described by a device tree, entered by Linux's boot protocol
//! (Documentation/arch/arm64/booting.rst).

mod affinity;
mod fdt;
mod gic;
mod kernel;
mod layout;
#[cfg(target_arch = "aarch64")]
mod setup;

pub use fdt::FdtError;
pub use gic::{Gic, TooManyVcpus};
pub use kernel::{Kernel, KernelError, initrd_address, load_kernel};
pub use layout::{
    DEVICE_BASE, LAST_WORDS, MAX_DEVICES, MAX_VCPUS, REGISTERS_IN_MEMORY, SERIAL_GSI, device_gsis,
    filled_first, hotplug_range, ram_ranges,
};
#[cfg(target_arch = "aarch64")]
pub use setup::*;

/// Writes the device tree without asking KVM which interrupt controller there is; returns where it is. For
/// fuzz targets; never in the program.
///
/// # Errors
/// When it cannot be written down, or does not fit.
#[cfg(feature = "testing")]
pub fn write_tree(
    ram: &crate::memory::Ram,
    gic: Gic,
    description: &super::Description<'_>,
) -> Result<vm_memory::GuestAddress, FdtError> {
    fdt::write(ram, gic, description)
}
