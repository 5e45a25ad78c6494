//! The guest kernel's command line: what the shim asks for, and the devices there are.

use crate::arch;
use crate::bus::slot_addresses;

/// Appends a clause for each of `devices` memory-mapped devices, which the kernel cannot discover
/// (`virtio_mmio.device=SIZE@ADDRESS:IRQ`, kernel-parameters.txt).
#[must_use]
pub fn compose(asked: &str, devices: usize) -> String {
    let mut words: Vec<String> = vec![asked.to_owned(), arch::CMDLINE.to_owned()];
    let slots = (arch::FIRST_DEVICE_GSI..).zip(slot_addresses(arch::DEVICE_BASE));
    for (gsi, address) in slots.take(devices) {
        words.push(format!("virtio_mmio.device=4K@{address:#x}:{gsi}"));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_clause_with_its_own_address_and_interrupt() {
        assert_eq!(
            compose("quiet", 2),
            "quiet no_timer_check virtio_mmio.device=4K@0xd0000000:5 \
             virtio_mmio.device=4K@0xd0001000:6"
        );
    }
}
