//! CPUID: what KVM can virtualize of the host's processor, and the topology of our vCPUs (one package, one
//! thread a core).
//!
//! Two things that KVM has are left out, as they are for nothing that a container does. Virtual machines in
//! the guest would have the host's kernel follow structures that the guest wrote, which has let guests out
//! (CVE-2021-29657). The counters of performance tell of other guests on the same core.

use std::arch::x86_64::__cpuid;
use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// Why a vCPU's CPUID could not be set.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM does not tell what it supports.
    #[error("get the supported CPUID")]
    Get(#[source] kvm_ioctls::Error),
    /// KVM refuses what it said it supports.
    #[error("set CPUID")]
    Set(#[source] kvm_ioctls::Error),
}

/// Highest leaf and vendor.
const VENDOR: u32 = 0x0;
const FEATURES: u32 = 0x1;
/// Intel: deterministic cache parameters.
const CACHES: u32 = 0x4;
/// Intel: counters of performance.
const COUNTERS: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
/// Highest extended leaf, and AMD's features.
const AMD_FEATURES: u32 = 0x8000_0001;
/// The processor's name, 16 bytes each.
const NAME: RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
/// AMD: sizes; elsewhere the bits of an address alone.
const SIZES: u32 = 0x8000_0008;
/// AMD: SVM's revision and features.
const SVM_FEATURES: u32 = 0x8000_000a;
/// AMD: cache parameters.
const AMD_CACHES: u32 = 0x8000_001d;
/// AMD: extended APIC id, core and node.
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// AMD: version 2 of the counters of performance.
const AMD_COUNTERS: u32 = 0x8000_0022;

/// Leaf 1, ECX: virtual machines on Intel's processors.
const VMX: u32 = 1 << 5;
/// Leaf 1, ECX: what the counters can do, and the 64-bit layout of what they store.
const PDCM: u32 = 1 << 15;
const DTES64: u32 = 1 << 2;
/// Leaf 1, EDX: the debug store, which the counters fill.
const DS: u32 = 1 << 21;
/// Leaf `0x8000_0001`, ECX: virtual machines on AMD's.
const SVM: u32 = 1 << 2;
/// Leaf `0x8000_0001`, ECX: counters of the core, the northbridge, the last level of cache (AMD APM volume 3,
/// E.4.2).
const AMD_PERF_CTR: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// Leaf 1, ECX: the local APIC's deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: EBX 23:16 is valid.
const HTT: u32 = 1 << 28;

/// Bits of a physical address where a processor does not say (Intel SDM, CPUID leaf 80000008H).
const DEFAULT_ADDRESS_BITS: u32 = 36;

/// What KVM supports on this host, of which each vCPU's CPUID is made.
#[derive(Debug)]
pub struct Supported {
    entries: Vec<kvm_cpuid_entry2>,
    deadline_timer: bool,
}

impl Supported {
    /// Asks KVM.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn of(kvm: &Kvm) -> Result<Self, CpuidError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Get)?;
        let mut entries = cpuid.as_slice().to_vec();
        for entry in &mut entries {
            named(entry);
        }
        Ok(Self {
            entries,
            deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Bits of a guest-physical address.
    pub(super) fn address_bits(&self) -> u32 {
        self.leaf(SIZES)
            .map_or(DEFAULT_ADDRESS_BITS, |sizes| sizes.eax & 0xff)
    }

    /// Sets the CPUID of vCPU `id` of `count`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub(super) fn set(&self, vcpu: &VcpuFd, id: u8, count: u8) -> Result<(), CpuidError> {
        let cpuid = CpuId::from_entries(&self.for_vcpu(id, count))
            .expect("KVM's own entries and two more, of which it takes 256");
        vcpu.set_cpuid2(&cpuid).map_err(CpuidError::Set)
    }

    fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.iter().find(|entry| entry.function == function)
    }

    fn is_amd(&self) -> bool {
        let vendor = |entry: &kvm_cpuid_entry2| [entry.ebx, entry.edx, entry.ecx];
        let [amd, hygon] = [*b"AuthenticAMD", *b"HygonGenuine"].map(|name| {
            [0, 4, 8]
                .map(|at| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]))
        });
        self.leaf(VENDOR)
            .map(vendor)
            .is_some_and(|it| it == amd || it == hygon)
    }

    fn for_vcpu(&self, id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let apic_id = u32::from(id);
        let cores = u32::from(count);
        let is_amd = self.is_amd();
        let mut entries: Vec<_> = (self.entries.iter().copied())
            .filter(|entry| !is_left_out(entry.function))
            .collect();
        for entry in &mut entries {
            match entry.function {
                FEATURES => self.features(entry, apic_id, cores),
                AMD_FEATURES => entry.ecx &= !(SVM | AMD_PERF_CTR),
                // Threads that share the cache, less one (25:14); cores of the package (31:26).
                CACHES if entry.eax & 0x1f != 0 => {
                    let package = (cores - 1).min(0x3f) << 26;
                    entry.eax = (entry.eax & 0x3fff) | sharing(entry.eax, cores) | package;
                }
                // Cores of the package, less one (7:0); bits of the APIC id (15:12).
                SIZES if is_amd => {
                    entry.ecx = (entry.ecx & !0xf0ff) | (cores - 1) | bits(cores) << 12;
                }
                AMD_CACHES if entry.eax & 0x1f != 0 => {
                    entry.eax = (entry.eax & !0x03ff_c000) | sharing(entry.eax, cores);
                }
                // Extended APIC id; core, one thread each; node 0 of one.
                AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
                _ => {}
            }
        }
        let highest = self.leaf(VENDOR).map_or(0, |entry| entry.eax);
        for leaf in [TOPOLOGY, TOPOLOGY_V2] {
            if leaf <= highest {
                entries.extend(topology(leaf, apic_id, cores));
            }
        }
        entries
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32, cores: u32) {
        entry.ebx = (entry.ebx & 0x0000_ffff) | cores << 16 | apic_id << 24;
        entry.ecx = entry.ecx & !(VMX | PDCM | DTES64) | HYPERVISOR;
        entry.edx &= !DS;
        // KVM emulates it on every processor, but lists it for Intel's alone. Without it the guest
        // calibrates its timer, for up to 100 ms.
        set_bits(&mut entry.ecx, TSC_DEADLINE, self.deadline_timer);
        set_bits(&mut entry.edx, HTT, cores > 1);
    }
}

/// Whether the guest finds zeroes in a leaf of KVM's, unless we have our own.
fn is_left_out(function: u32) -> bool {
    let virtual_machines = matches!(function, SVM_FEATURES);
    let counters = matches!(function, COUNTERS | AMD_COUNTERS);
    let topology = matches!(function, TOPOLOGY | TOPOLOGY_V2);
    virtual_machines || counters || topology
}

/// Gives the guest the host's name of the processor: KVM has none for it.
fn named(entry: &mut kvm_cpuid_entry2) {
    if NAME.contains(&entry.function) {
        let host = __cpuid(entry.function);
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
    }
}

/// Extended topology (Intel SDM, CPUID leaf 0BH): threads of a core, cores of the package. KVM
/// supports both leaves, but leaves their subleaves to us: it lists the first one alone, and a guest
/// that finds no more takes each vCPU for a package of its own.
fn topology(function: u32, apic_id: u32, cores: u32) -> [kvm_cpuid_entry2; 2] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index, shift, processors, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, bits(cores), cores, CORES)]
}

/// Processors that share a cache, less one, where both vendors have it (25:14): all for level 3 and
/// up, one below.
fn sharing(eax: u32, cores: u32) -> u32 {
    let level = (eax >> 5) & 7;
    if level >= 3 { (cores - 1) << 14 } else { 0 }
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

    const ALL: u32 = u32::MAX;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: ALL,
            ebx: ALL,
            ecx: ALL,
            edx: ALL,
            ..Default::default()
        }
    }

    /// What newer kernels list: of the topology's leaves the first subleaf, and that empty.
    fn supported(vendor: &[u8; 12], highest: u32) -> Supported {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let first = kvm_cpuid_entry2 {
            function: VENDOR,
            eax: highest,
            ebx: word(0),
            edx: word(4),
            ecx: word(8),
            ..Default::default()
        };
        let empty = |function| kvm_cpuid_entry2 {
            function,
            ..Default::default()
        };
        let mut entries = vec![first, entry(FEATURES, 0), entry(SIZES, 0)];
        entries.extend([CACHES, AMD_CACHES, AMD_TOPOLOGY].map(|leaf| entry(leaf, 0)));
        entries.extend([TOPOLOGY, TOPOLOGY_V2].map(empty));
        Supported {
            entries,
            deadline_timer: true,
        }
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let mut found = entries
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index));
        let first = found.next().copied();
        assert!(
            found.next().is_none(),
            "{function:#x} {index} is there twice"
        );
        first
    }

    #[test]
    fn the_processor_has_the_hosts_name_and_nothing_else_of_it() {
        let mut name = kvm_cpuid_entry2 {
            function: *NAME.start(),
            ..Default::default()
        };
        named(&mut name);
        assert_eq!(name.eax, __cpuid(*NAME.start()).eax);

        let mut features = entry(FEATURES, 0);
        named(&mut features);
        assert_eq!(features.eax, ALL);
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let entries = supported(b"AuthenticAMD", 0x1f).for_vcpu(3, 4);
        assert_eq!(leaf(&entries, FEATURES, 0).unwrap().ebx >> 16, 0x0304);
        assert_eq!(leaf(&entries, TOPOLOGY, 0).unwrap().edx, 3);
        assert_eq!(leaf(&entries, TOPOLOGY, 1).unwrap().edx, 3);
        assert_eq!(leaf(&entries, AMD_TOPOLOGY, 0).unwrap().eax, 3);
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
            let entries = supported(vendor, 0x1f).for_vcpu(0, 6);
            for function in [TOPOLOGY, TOPOLOGY_V2] {
                let threads = leaf(&entries, function, 0).unwrap();
                assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
                let cores = leaf(&entries, function, 1).unwrap();
                assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
                assert!(threads.flags & cores.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0);
                assert!(leaf(&entries, function, 2).is_none());
            }
        }
    }

    #[test]
    fn a_processor_without_a_topology_leaf_gets_none() {
        let entries = supported(b"GenuineIntel", 0xb).for_vcpu(0, 2);
        assert!(leaf(&entries, TOPOLOGY, 1).is_some());
        assert!(leaf(&entries, TOPOLOGY_V2, 0).is_none());
        let entries = supported(b"GenuineIntel", 0xa).for_vcpu(0, 2);
        assert!(leaf(&entries, TOPOLOGY, 0).is_none());
    }

    #[test]
    fn amd_counts_its_cores_and_for_others_that_field_is_reserved() {
        let entries = supported(b"AuthenticAMD", 0xd).for_vcpu(0, 6);
        assert_eq!(leaf(&entries, SIZES, 0).unwrap().ecx & 0xf0ff, 0x3005);
        let entries = supported(b"GenuineIntel", 0xd).for_vcpu(0, 6);
        assert_eq!(leaf(&entries, SIZES, 0).unwrap().ecx, ALL);
    }

    #[test]
    fn only_the_last_level_of_caches_is_shared() {
        assert_eq!(sharing(2 << 5 | 1, 4), 0);
        assert_eq!(sharing(3 << 5 | 3, 4), 3 << 14);
        let entries = supported(b"GenuineIntel", 0xd).for_vcpu(0, 255);
        assert_eq!(
            leaf(&entries, CACHES, 0).unwrap().eax,
            0x3f << 26 | 254 << 14 | 0x3fff
        );
    }

    #[test]
    fn the_deadline_timer_is_there_if_kvm_has_it_whoever_made_the_processor() {
        for there in [false, true] {
            let mut supported = supported(b"AuthenticAMD", 0xd);
            supported.deadline_timer = there;
            let features = leaf(&supported.for_vcpu(0, 1), FEATURES, 0).unwrap();
            assert_eq!(features.ecx & TSC_DEADLINE != 0, there);
            assert_eq!(features.edx & HTT, 0);
            assert_eq!(features.ecx & HYPERVISOR, HYPERVISOR);
        }
    }

    #[test]
    fn cve_2021_29657_no_guest_is_offered_virtual_machines_of_its_own() {
        for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
            let mut supported = supported(vendor, 0xd);
            let of_amd = [AMD_FEATURES, SVM_FEATURES];
            supported.entries.extend(of_amd.map(|leaf| entry(leaf, 0)));
            let entries = supported.for_vcpu(0, 1);
            assert_eq!(leaf(&entries, FEATURES, 0).unwrap().ecx & VMX, 0);
            assert_eq!(leaf(&entries, AMD_FEATURES, 0).unwrap().ecx & SVM, 0);
            assert_eq!(leaf(&entries, SVM_FEATURES, 0), None);
        }
    }

    #[test]
    fn no_guest_is_offered_counters_that_tell_of_others() {
        for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
            let mut supported = supported(vendor, 0xd);
            let counters = [COUNTERS, AMD_FEATURES, AMD_COUNTERS];
            let entries = counters.map(|leaf| entry(leaf, 0));
            supported.entries.extend(entries);
            let entries = supported.for_vcpu(0, 1);
            let features = leaf(&entries, FEATURES, 0).unwrap();
            assert_eq!((features.ecx & (PDCM | DTES64), features.edx & DS), (0, 0));
            let of_amd = leaf(&entries, AMD_FEATURES, 0).unwrap();
            assert_eq!(of_amd.ecx, ALL & !(SVM | AMD_PERF_CTR));
            for function in [COUNTERS, AMD_COUNTERS] {
                assert_eq!(leaf(&entries, function, 0), None);
            }
        }
    }

    #[test]
    fn what_is_not_ours_to_say_stays_as_kvm_supports_it() {
        let mut supported = supported(b"GenuineIntel", 0xd);
        let features = [0x4000_0001, 0x7, 0x15];
        supported
            .entries
            .extend(features.map(|leaf| entry(leaf, 0)));
        let entries = supported.for_vcpu(1, 2);
        for function in features {
            assert_eq!(leaf(&entries, function, 0), Some(entry(function, 0)));
        }
    }
}
