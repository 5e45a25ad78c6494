//! What is loaded into a guest of aarch64 before it starts: a kernel's image, an initial RAM file
//! system, and the device tree that tells of them. On any machine: nothing of it needs KVM.
#![no_main]

use arbitrary::{Result, Unstructured};
use hull_fuzz::file;
use hull_vmm::arch::Description;
use hull_vmm::arch::aarch64::{self, DEVICE_BASE, Gic, MAX_DEVICES, MAX_VCPUS};
use hull_vmm::loader::initrd;
use hull_vmm::memory::{self, Ram};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Little memory, so that a few bytes' sizes are too large for it.
const RAM: u64 = 16 << 20;

/// From where a kernel's offset counts.
const KERNEL: u64 = 0x4020_0000;

/// What Linux keeps of a command line.
const CMDLINE: usize = 2047;

/// Tokens of a device tree (Devicetree Specification 0.4, §5.4.1).
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// An `Image` and where it wants to be (booting.rst, "Call the kernel image"), right more often than
/// not.
fn image(bytes: &mut Unstructured<'_>) -> Result<(Vec<u8>, u64)> {
    let mut image = vec![0; bytes.int_in_range(0..=63)?];
    if bytes.ratio(7, 8)? {
        image.resize(64, 0);
        image[56..60].copy_from_slice(b"ARM\x64");
    }
    let rest = bytes.int_in_range(0..=255)?;
    image.extend(bytes.bytes(rest.min(bytes.len()))?);
    let offset = match bytes.int_in_range(0..=7)? {
        0 => bytes.arbitrary()?,
        1 => RAM - u64::from(bytes.arbitrary::<u16>()?),
        _ => u64::from(bytes.arbitrary::<u16>()?),
    };
    let size = match bytes.int_in_range(0..=7)? {
        0 => bytes.arbitrary()?,
        1 => u64::from(bytes.arbitrary::<u8>()?),
        _ => image.len() as u64 + u64::from(bytes.arbitrary::<u16>()?),
    };
    let flags = match bytes.int_in_range(0..=7)? {
        0 => bytes.arbitrary()?,
        _ => 0xa_u64,
    };
    for (at, number) in [(8, offset), (16, size), (24, flags)] {
        if let Some(place) = image.get_mut(at..at + 8) {
            place.copy_from_slice(&number.to_le_bytes());
        }
    }
    Ok((image, offset))
}

/// Words as long as a kernel takes, and longer, of any characters.
fn cmdline(bytes: &mut Unstructured<'_>) -> Result<String> {
    let length = bytes.int_in_range(0..=64)?;
    let word = String::from_utf8_lossy(bytes.bytes(length.min(bytes.len()))?);
    Ok(word.repeat(bytes.int_in_range(0..=64)?))
}

/// A number of the tree, most significant byte first.
fn number(tree: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(tree[at..at + 4].try_into().expect("four of them"))
}

fn text(tree: &[u8], at: usize) -> &[u8] {
    tree[at..].split(|&byte| byte == 0).next().expect("it ends")
}

/// Reads the tree as the kernel does; returns the value of each property `name`.
fn properties<'a>(tree: &'a [u8], name: &str) -> Vec<&'a [u8]> {
    assert_eq!(number(tree, 0), 0xd00d_feed);
    let [mut at, strings] = [8, 12].map(|field| number(tree, field) as usize);
    let (mut depth, mut found) = (0_u32, Vec::new());
    loop {
        let token = number(tree, at);
        at += 4;
        match token {
            BEGIN_NODE => {
                depth += 1;
                at += text(tree, at).len() + 1;
            }
            END_NODE => depth -= 1,
            PROPERTY => {
                let (length, property) = (number(tree, at) as usize, number(tree, at + 4));
                at += 8;
                if text(tree, strings + property as usize) == name.as_bytes() {
                    found.push(&tree[at..at + length]);
                }
                at += length;
            }
            END => break,
            other => panic!("token {other}"),
        }
        at = at.next_multiple_of(4);
    }
    assert_eq!(depth, 0, "every node ends");
    found
}

fn boot(ram: &Ram, bytes: &mut Unstructured<'_>) -> Result<()> {
    let (image, offset) = image(bytes)?;
    let cmdline = cmdline(bytes)?;
    let gic = *bytes.choose(&[Gic::V2, Gic::V3])?;
    let vcpus = bytes.int_in_range(1..=MAX_VCPUS)?;
    let serial = bytes.arbitrary()?;
    let devices = bytes.int_in_range(0..=MAX_DEVICES as u64)?;
    let devices: Vec<_> = (0..devices)
        .zip(aarch64::device_gsis())
        .map(|(slot, gsi)| (DEVICE_BASE + slot * 0x1000, gsi))
        .collect();
    let Ok(kernel) = aarch64::load_kernel(ram, file(&image)) else {
        return Ok(());
    };
    let content = bytes.bytes(bytes.len())?;
    let place = |len| aarch64::initrd_address(ram, &kernel, len);
    let initrd = initrd::load(ram, file(content), place).ok();
    let description = Description {
        vcpus,
        cmdline: &cmdline,
        initrd,
        devices: &devices,
        serial,
    };
    let written = aarch64::write_tree(ram, gic, &description);
    let proper = cmdline.len() <= CMDLINE && !cmdline.contains('\0');
    assert_eq!(written.is_ok(), proper, "{written:?}");
    let Ok(address) = written else {
        return Ok(());
    };

    // Nothing lies on anything else, so all of it is still there.
    let read = |address, length| {
        let mut bytes = vec![0; length];
        ram.read_slice(&mut bytes, address).expect("it is memory");
        bytes
    };
    let entry = GuestAddress(KERNEL + offset);
    assert!(read(entry, image.len()) == image, "the kernel");
    if let Some((address, _)) = initrd {
        assert!(read(address, content.len()) == content, "the file system");
    }
    let header = read(address, 8);
    let tree = read(address, number(&header, 4) as usize);
    let value = |name| properties(&tree, name);
    assert_eq!(value("bootargs"), [[cmdline.as_bytes(), b"\0"].concat()]);
    let [start, end] = ["linux,initrd-start", "linux,initrd-end"].map(value);
    let told =
        initrd.map(|(address, length)| [address.0, address.0 + length].map(u64::to_be_bytes));
    let told = told.as_ref().map(|both| [&both[0][..], &both[1][..]]);
    assert_eq!(
        [start, end].concat(),
        told.into_iter().flatten().collect::<Vec<_>>()
    );
    assert_eq!(value("enable-method").len(), usize::from(vcpus));
    let virtio = value("compatible").into_iter();
    let virtio = virtio.filter(|kind| *kind == b"virtio,mmio\0");
    assert_eq!(virtio.count(), devices.len());
    Ok(())
}

thread_local! {
    static MEMORY: Ram = memory::allocate(&aarch64::ram_ranges(RAM)).expect("memory");
}

fuzz_target!(|bytes: &[u8]| MEMORY.with(|ram| {
    hull_fuzz::wipe(ram, GuestAddress(0x4000_0000), 0);
    let _ = boot(ram, &mut Unstructured::new(bytes));
}));
