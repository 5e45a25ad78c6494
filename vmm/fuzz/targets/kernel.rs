//! What is loaded into a guest before it starts: a kernel, an initial RAM file system, a command
//! line. Files of the host, but perhaps of somebody the host's administrator should not have trusted.
#![no_main]

use arbitrary::{Result, Unstructured};
use hull_fuzz::file;
use hull_vmm::arch::{self, Description, Interrupts};
use hull_vmm::loader::initrd;
use hull_vmm::memory::{self, Ram};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

/// Little memory, so that a few bytes' sizes are too large for it.
const RAM: usize = 16 << 20;

/// A 64-bit ELF for x86_64, with program headers right behind its own.
fn elf_header(segments: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0x10_0000_u64, 64, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend([0; 4]);
    for half in [64, 56, segments, 0, 0, 0] {
        header.extend(u16::to_le_bytes(half));
    }
    header
}

fn kernel(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    if bytes.ratio(3, 4)? {
        let segments = bytes.int_in_range(0..=4)?;
        file.extend(elf_header(segments));
        for _ in 0..segments {
            // Load, note, or anything.
            file.extend(bytes.choose(&[1_u32, 1, 4, 4, 2])?.to_le_bytes());
            file.extend(5_u32.to_le_bytes());
            for _ in 0..6 {
                let word = match bytes.int_in_range(0..=7)? {
                    0 => bytes.arbitrary()?,
                    1..=3 => u64::from(bytes.arbitrary::<u8>()?),
                    4 => 0x10_0000 + u64::from(bytes.arbitrary::<u16>()?),
                    _ => u64::from(bytes.arbitrary::<u16>()? % 1024),
                };
                file.extend(word.to_le_bytes());
            }
        }
    }
    let rest = bytes.int_in_range(0..=1024)?;
    file.extend(bytes.bytes(rest.min(bytes.len()))?);
    Ok(file)
}

thread_local! {
    static MEMORY: Ram = memory::allocate(&[(GuestAddress(0), RAM)]).expect("memory");
}

fuzz_target!(|bytes: &[u8]| MEMORY.with(|ram| {
    hull_fuzz::wipe(ram, GuestAddress(0), 0);
    boot(ram, bytes);
}));

fn boot(ram: &Ram, bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let Ok(content) = kernel(&mut bytes) else {
        return;
    };
    let Ok(kernel) = arch::load_kernel(ram, file(&content)) else {
        return;
    };
    let place = |len| arch::initrd_address(ram, &kernel, len);
    let initrd = initrd::load(ram, file(bytes.take_rest()), place).ok();
    let description = Description {
        vcpus: 1,
        cmdline: "quiet",
        initrd,
        devices: &[(0xd000_0000, 5)],
        serial: true,
    };
    let _ = arch::write_tables(ram, &Interrupts, &description);
}
