//! Which vCPU is which: the affinity fields of `MPIDR_EL1`, by which the device tree and PSCI name
//! processors.

/// The bits of `MPIDR_EL1` that name a processor, Aff3 to Aff0 (Arm ARM D24.2.120).
pub(super) const FIELDS: u64 = 0xff_00ff_ffff;

/// The affinity that KVM gives to vCPU `id` (arch/arm64/kvm/sys_regs.c, `reset_mpidr`): 16 vCPUs in
/// each group that one software-generated interrupt can reach.
pub(super) const fn of(id: u8) -> u64 {
    let id = id as u64;
    (id >> 4) << 8 | id & 0xf
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_vcpu_has_an_affinity_of_its_own_in_groups_of_sixteen() {
        assert_eq!([0, 1, 15, 16, 254].map(of), [0, 1, 0xf, 0x100, 0xf0e]);
        let all: BTreeSet<_> = (0..=u8::MAX).map(of).collect();
        assert_eq!(all.len(), 256);
        assert!(all.iter().all(|affinity| affinity & !FIELDS == 0));
    }
}
