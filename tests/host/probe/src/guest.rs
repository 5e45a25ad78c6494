//! A guest of forty bytes.
#![expect(unsafe_code, reason = "telling KVM where the guest's memory is")]

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 2 << 20;
const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x1100;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
/// The legacy region and header of an XSAVE area, all zero: "restore the initial state".
const XSAVE_AREA: u64 = 0x4000;
const STACK: u64 = 0x6000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;

/// Where the guest says that it is done.
const DONE_PORT: u16 = 0xe9;

/// Turns of the guest's loop, of two instructions each.
const TURNS: u32 = 2_000_000;

/// What a processor does at least; an interpreter is fifty times slower.
const MIN_MIPS: u128 = 100;

const PROGRAM: [u8; 32] = [
    0x31, 0xc9, // xor ecx, ecx
    0x31, 0xd2, // xor edx, edx
    0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, 3: x87 and SSE
    0x0f, 0x01, 0xd1, // xsetbv
    0x48, 0x0f, 0xae, 0x2f, // xrstor64 [rdi]
    0xcc, // int3
    0xb9, 0x80, 0x84, 0x1e, 0x00, // mov ecx, TURNS
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz to the dec
    0xe6, 0xe9, // out 0xe9, al
    0xf4, // hlt
    0xeb, 0xfd, 0x90, // jmp to the hlt
];

/// Runs the guest; says how fast it was.
pub(crate) fn run() -> anyhow::Result<String> {
    ensure!(
        PROGRAM[18..22] == TURNS.to_le_bytes(),
        "the program counts other turns"
    );
    let kvm = Kvm::new().context("open /dev/kvm")?;
    let vm = kvm.create_vm().context("create a virtual machine")?;
    let memory = memory()?;
    let host = memory
        .get_host_address(GuestAddress(0))
        .context("find the guest's memory")?;
    let slot = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: host.addr() as u64,
        ..Default::default()
    };
    // SAFETY: the range is one live mapping of MEMORY bytes, which outlives the virtual machine:
    // `memory` is dropped after `vm` and `vcpu`, and nothing refers into it meanwhile.
    unsafe { vm.set_user_memory_region(slot) }.context("map the guest's memory")?;
    let mut vcpu = vm.create_vcpu(0).context("create a vCPU")?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("get CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("set CPUID")?;
    enter_long_mode(&vcpu)?;

    let begin = Instant::now();
    match vcpu.run().context("run the guest")? {
        VcpuExit::IoOut(DONE_PORT, _) => {}
        other => {
            let stopped = format!("{other:?}");
            let at = vcpu.get_regs().map(|regs| regs.rip).unwrap_or_default();
            bail!("a guest that uses XRSTOR and INT3 stops at {stopped}, rip {at:#x}");
        }
    }
    let micros = begin.elapsed().as_micros().max(1);
    let mips = u128::from(TURNS) * 2 / micros;
    ensure!(
        mips >= MIN_MIPS,
        "a guest runs {mips} million instructions a second: it is interpreted"
    );
    Ok(format!("a guest runs {mips} million instructions a second"))
}

fn memory() -> anyhow::Result<GuestMemoryMmap<()>> {
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    let put = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
    memory.write_slice(&PROGRAM, GuestAddress(CODE))?;
    memory.write_slice(&[0x48, 0xcf], GuestAddress(HANDLER))?; // iretq
    // Vector 3: a 64-bit interrupt gate to HANDLER in the code segment.
    put(0x8e00 << 32 | 0x8 << 16 | HANDLER, IDT + 3 * 16)?;
    put(0x00af_9b00_0000_ffff, GDT + 8)?;
    put(0x00cf_9300_0000_ffff, GDT + 16)?;
    // One page of 2 MiB at its own address: present, writable, large.
    put(PDPT | 3, PML4)?;
    put(PD | 3, PDPT)?;
    put(0x83, PD)?;
    Ok(memory)
}

fn enter_long_mode(vcpu: &VcpuFd) -> anyhow::Result<()> {
    let mut sregs = vcpu.get_sregs().context("get segment registers")?;
    let segment = |selector, type_, l, db| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db,
        ..Default::default()
    };
    sregs.cs = segment(0x8, 0xb, 1, 0);
    let data = segment(0x10, 0x3, 0, 1);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 4 * 16 - 1);
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 18; // PAE, OSFXSR, OSXSAVE
    sregs.cr0 = 1 << 31 | 1 << 5 | 1 << 1 | 1; // PG, NE, MP, PE
    sregs.efer = 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&sregs).context("set segment registers")?;
    let regs = kvm_regs {
        rip: CODE,
        rsp: STACK,
        rdi: XSAVE_AREA,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).context("set registers")
}
