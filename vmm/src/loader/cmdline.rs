//! The guest kernel's command line: what the machine needs, the devices there are, and what the shim
//! asks for.

/// Joins what the machine `needs`, a clause for each memory-mapped device, which the kernel cannot
/// discover (`virtio_mmio.device=SIZE@ADDRESS:IRQ`, kernel-parameters.txt), and what was `asked` for.
/// Devices are an address and an interrupt each, and probed in their order.
///
/// What was asked for comes last: a later word wins over an earlier one, and after `--` there may be
/// words for init, which the kernel does not read.
#[must_use]
pub fn compose(needs: &str, devices: impl IntoIterator<Item = (u64, u32)>, asked: &str) -> String {
    let clauses = (devices.into_iter())
        .map(|(address, gsi)| format!("virtio_mmio.device=4K@{address:#x}:{gsi}"));
    let words = |words: &str| Some(words.trim().to_owned()).filter(|words| !words.is_empty());
    (words(needs).into_iter())
        .chain(clauses)
        .chain(words(asked))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_clause_with_its_own_address_and_interrupt() {
        let devices = [(0xd000_0000, 5), (0xd000_1000, 6)];
        assert_eq!(
            compose("no_timer_check", devices, "quiet"),
            "no_timer_check virtio_mmio.device=4K@0xd0000000:5 \
             virtio_mmio.device=4K@0xd0001000:6 quiet"
        );
    }

    /// kernel-parameters: "Everything after -- is passed as an argument to init."
    #[test]
    fn words_for_init_stay_at_the_end() {
        let line = compose("a", [(0x1000, 5)], "root=/dev/vda -- -x");
        assert_eq!(line, "a virtio_mmio.device=4K@0x1000:5 root=/dev/vda -- -x");
    }

    #[test]
    fn nothing_asked_and_nothing_there_leaves_no_blank() {
        assert_eq!(compose("no_timer_check", [], " "), "no_timer_check");
        assert_eq!(
            compose("", [(1 << 32, 23)], ""),
            "virtio_mmio.device=4K@0x100000000:23"
        );
        assert_eq!(compose("", [], ""), "");
    }
}
