//! CPUID: all that KVM can virtualize of the host's processor, and the topology of our vCPUs (one
//! package, one thread a core).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};

/// Why a vCPU's CPUID could not be set.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct CpuidError {
    what: &'static str,
    #[source]
    source: kvm_ioctls::Error,
}

/// Leaf 1, ECX: the local APIC's deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX 23:16 is valid.
const HTT: u32 = 1 << 28;

pub(super) fn set(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    id: u8,
    count: u8,
    deadline_timer: bool,
) -> Result<(), CpuidError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| CpuidError {
            what: "get the supported CPUID",
            source,
        })?;
    adapt(&mut cpuid, id, count, deadline_timer);
    vcpu.set_cpuid2(&cpuid).map_err(|source| CpuidError {
        what: "set CPUID",
        source,
    })
}

/// Makes what KVM supports the CPUID of vCPU `id` of `count`.
fn adapt(cpuid: &mut CpuId, id: u8, count: u8, deadline_timer: bool) {
    let apic_id = u32::from(id);
    let cores = u32::from(count);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | cores << 16 | apic_id << 24;
                entry.ecx |= HYPERVISOR;
                // KVM emulates it on every processor, but lists it for Intel's alone. Without it
                // the guest calibrates its timer, for up to 100 ms.
                set_bits(&mut entry.ecx, TSC_DEADLINE, deadline_timer);
                set_bits(&mut entry.edx, HTT, cores > 1);
            }
            // Intel's caches: threads that share one (25:14), cores of the package (31:26).
            0x4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax =
                    (entry.eax & 0x3fff) | sharing.min(0xfff) << 14 | (cores - 1).min(63) << 26;
            }
            0xb | 0x1f => topology(entry, apic_id, cores),
            0x8000_0008 => {
                // AMD: cores of the package less one (7:0), bits of the APIC id (15:12).
                entry.ecx = (entry.ecx & !0xf0ff) | (cores - 1) | bits(cores) << 12;
            }
            // AMD: cores that share a cache, less one (25:14).
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = (entry.eax & !0x03ff_c000) | sharing.min(0xfff) << 14;
            }
            // AMD: extended APIC id; core id, one thread each; node 0, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
}

/// Extended topology (Intel SDM, CPUID leaf 0BH): threads of a core, cores of the package.
fn topology(entry: &mut kvm_cpuid_entry2, apic_id: u32, cores: u32) {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let (shift, processors, kind) = match entry.index {
        0 => (0, 1, THREADS),
        1 => (bits(cores), cores, CORES),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = entry.index | kind << 8;
    entry.edx = apic_id;
}

/// Bits that hold the numbers below `count`.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn set_bits(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let all = 0xffff_ffff;
        kvm_cpuid_entry2 {
            function,
            index,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        }
    }

    fn adapted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut cpuid = CpuId::from_entries(&[entry(function, index)]).unwrap();
        adapt(&mut cpuid, id, count, true);
        cpuid.as_slice()[0]
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        assert_eq!(adapted(1, 0, 3, 4).ebx >> 16, 0x0304);
        assert_eq!(adapted(0xb, 0, 3, 4).edx, 3);
        assert_eq!(adapted(0x8000_001e, 0, 3, 4).eax, 3);
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let threads = adapted(0xb, 0, 0, 6);
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        let cores = adapted(0xb, 1, 0, 6);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        let end = adapted(0xb, 2, 0, 6);
        assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
    }

    #[test]
    fn the_deadline_timer_is_there_if_kvm_has_it() {
        for there in [false, true] {
            let mut cpuid = CpuId::from_entries(&[entry(1, 0)]).unwrap();
            adapt(&mut cpuid, 0, 1, there);
            assert_eq!(cpuid.as_slice()[0].ecx & TSC_DEADLINE != 0, there);
            assert_eq!(cpuid.as_slice()[0].edx & HTT, 0);
        }
    }
}
