//! The tree, read back as a kernel reads it (Devicetree Specification 0.4 §5).

use std::collections::BTreeMap;

use super::*;
use crate::arch::aarch64::{DEVICE_BASE, MAX_DEVICES, MAX_VCPUS, device_gsis, ram_ranges};
use crate::memory;

/// Properties by path, the nodes in their order, and who is called by a handle.
#[derive(Debug, Default)]
struct Tree {
    nodes: Vec<String>,
    properties: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    fn read(blob: &[u8]) -> Self {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
        let text = |at: usize| {
            let end = at + blob[at..].iter().position(|&byte| byte == 0).unwrap();
            std::str::from_utf8(&blob[at..end]).unwrap().to_owned()
        };
        assert_eq!((word(0), word(4)), (0xd00d_feed, blob.len()));
        let (mut at, strings) = (word(8), word(12));
        let mut tree = Self::default();
        let mut path: Vec<String> = Vec::new();
        loop {
            let token = word(at);
            at += 4;
            match token {
                // FDT_BEGIN_NODE
                1 => {
                    let name = text(at);
                    at += (name.len() + 1).next_multiple_of(4);
                    path.push(name);
                    tree.nodes.push(path.join("/"));
                }
                // FDT_END_NODE
                2 => drop(path.pop().unwrap()),
                // FDT_PROP
                3 => {
                    let (length, name) = (word(at), text(strings + word(at + 4)));
                    let value = blob[at + 8..at + 8 + length].to_vec();
                    at += 8 + length.next_multiple_of(4);
                    let name = format!("{}/{name}", path.join("/"));
                    assert_eq!(tree.properties.insert(name.clone(), value), None, "{name}");
                }
                // FDT_END
                9 => return tree,
                other => panic!("token {other}"),
            }
        }
    }

    fn bytes(&self, path: &str) -> &[u8] {
        match self.properties.get(path) {
            Some(value) => value,
            None => panic!("no {path}"),
        }
    }

    fn text(&self, path: &str) -> &str {
        std::str::from_utf8(self.bytes(path)).unwrap()
    }

    fn cells(&self, path: &str) -> Vec<u32> {
        let cell = |cell: &[u8]| u32::from_be_bytes(cell.try_into().unwrap());
        self.bytes(path).chunks(4).map(cell).collect()
    }

    fn numbers(&self, path: &str) -> Vec<u64> {
        let number = |number: &[u8]| u64::from_be_bytes(number.try_into().unwrap());
        self.bytes(path).chunks(8).map(number).collect()
    }

    fn nodes_below(&self, start: &str) -> Vec<&str> {
        let below = self.nodes.iter().filter(|node| node.starts_with(start));
        below.map(String::as_str).collect()
    }
}

fn devices(count: usize) -> Vec<(u64, u32)> {
    let places = (DEVICE_BASE..).step_by(0x1000).zip(device_gsis());
    places.take(count).collect()
}

fn description(devices: &[(u64, u32)]) -> Description<'_> {
    Description {
        vcpus: 2,
        cmdline: "quiet root=/dev/vda",
        initrd: None,
        devices,
        serial: false,
    }
}

fn tree(gic: Gic, description: &Description<'_>) -> Tree {
    let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
    let address = write(&ram, gic, description).unwrap();
    assert_eq!(address, GuestAddress(layout::FDT));
    let mut size = [0; 4];
    ram.read_slice(&mut size, GuestAddress(layout::FDT + 4))
        .unwrap();
    let mut blob = vec![0; u32::from_be_bytes(size) as usize];
    ram.read_slice(&mut blob, address).unwrap();
    Tree::read(&blob)
}

#[test]
fn the_kernel_finds_memory_words_and_its_initial_file_system() {
    let initrd = Some((GuestAddress(0x4200_0000), 77));
    let description = Description {
        initrd,
        ..description(&[])
    };
    let tree = tree(Gic::V3, &description);
    assert_eq!(tree.numbers("/memory@40000000/reg"), [1 << 30, 64 << 20]);
    assert_eq!(tree.text("/memory@40000000/device_type"), "memory\0");
    assert_eq!(tree.text("/chosen/bootargs"), "quiet root=/dev/vda\0");
    assert_eq!(tree.numbers("/chosen/linux,initrd-start"), [0x4200_0000]);
    assert_eq!(tree.numbers("/chosen/linux,initrd-end"), [0x4200_004d]);
}

#[test]
fn every_guest_has_seeds_of_its_own() {
    let [first, second] = [(); 2].map(|()| tree(Gic::V3, &description(&[])));
    for seed in ["/chosen/rng-seed", "/chosen/kaslr-seed"] {
        assert_ne!(first.bytes(seed), second.bytes(seed), "{seed}");
    }
    assert_eq!(first.bytes("/chosen/rng-seed").len(), 64);
}

#[test]
fn processors_have_the_affinity_that_kvm_gives_them_and_start_by_psci() {
    for vcpus in [1, 2, 17, MAX_VCPUS] {
        let description = Description {
            vcpus,
            ..description(&[])
        };
        let tree = tree(Gic::V3, &description);
        let nodes = tree.nodes_below("/cpus/");
        assert_eq!(nodes.len(), usize::from(vcpus));
        for (id, node) in (0..).zip(nodes) {
            let affinity = u32::try_from(affinity::of(id)).unwrap();
            assert_eq!(node, format!("/cpus/cpu@{affinity:x}"));
            assert_eq!(tree.cells(&format!("{node}/reg")), [affinity]);
            assert_eq!(tree.text(&format!("{node}/enable-method")), "psci\0");
        }
    }
    let tree = tree(Gic::V3, &description(&[]));
    assert_eq!(tree.text("/psci/method"), "hvc\0");
    let versions = "arm,psci-1.0\0arm,psci-0.2\0";
    assert_eq!(tree.text("/psci/compatible"), versions);
}

#[test]
fn the_interrupt_controller_is_the_hosts_and_everybodys_parent() {
    let node = "/interrupt-controller@8000000";
    for (gic, compatible, registers, timer) in [
        (
            Gic::V3,
            "arm,gic-v3\0",
            [0x800_0000, 0x1_0000, 0xa00_0000, 0x4_0000],
            4,
        ),
        (
            Gic::V2,
            "arm,cortex-a15-gic\0",
            [0x800_0000, 0x1000, 0x801_0000, 0x2000],
            0x304,
        ),
    ] {
        let tree = tree(gic, &description(&[]));
        assert_eq!(tree.text(&format!("{node}/compatible")), compatible);
        assert_eq!(tree.numbers(&format!("{node}/reg")), registers);
        assert_eq!(tree.cells(&format!("{node}/#interrupt-cells")), [3]);
        let handle = tree.cells(&format!("{node}/phandle"));
        assert_eq!(tree.cells("/interrupt-parent"), handle);
        let timers = [13, 14, 11, 10].map(|number| [1, number, timer]);
        assert_eq!(tree.cells("/timer/interrupts"), timers.as_flattened());
    }
}

#[test]
fn every_device_has_a_node_in_the_order_in_which_it_is_to_be_found() {
    let devices = devices(MAX_DEVICES);
    let tree = tree(Gic::V3, &description(&devices));
    let nodes = tree.nodes_below("/virtio@");
    assert_eq!(nodes.len(), MAX_DEVICES);
    for (node, (address, gsi)) in nodes.iter().zip(devices) {
        assert_eq!(*node, format!("/virtio@{address:x}"));
        assert_eq!(tree.numbers(&format!("{node}/reg")), [address, 0x1000]);
        assert_eq!(tree.cells(&format!("{node}/interrupts")), [0, gsi, 1]);
        assert_eq!(tree.text(&format!("{node}/compatible")), "virtio,mmio\0");
        assert!(tree.bytes(&format!("{node}/dma-coherent")).is_empty());
    }
}

#[test]
fn there_is_a_console_only_when_there_is_one() {
    let without = tree(Gic::V3, &description(&[]));
    assert!(without.nodes_below("/serial").is_empty());
    assert!(!without.properties.contains_key("/chosen/stdout-path"));

    let description = Description {
        serial: true,
        ..description(&[])
    };
    let with = tree(Gic::V3, &description);
    assert_eq!(with.text("/chosen/stdout-path"), "/serial@c000000\0");
    assert_eq!(with.text("/serial@c000000/compatible"), "ns16550a\0");
    assert_eq!(with.cells("/serial@c000000/interrupts"), [0, 1, 1]);
}

#[test]
fn the_clock_names_the_clock_that_drives_it() {
    let tree = tree(Gic::V3, &description(&[]));
    assert_eq!(
        tree.cells("/rtc@c001000/clocks"),
        tree.cells("/apb-clock/phandle")
    );
    assert_eq!(tree.text("/rtc@c001000/clock-names"), "apb_pclk\0");
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let ram = memory::allocate(&ram_ranges(64 << 20)).unwrap();
    let line = "x".repeat(CMDLINE_LEN + 1);
    for (length, refused) in [(CMDLINE_LEN, false), (CMDLINE_LEN + 1, true)] {
        let description = Description {
            cmdline: &line[..length],
            ..description(&[])
        };
        let result = write(&ram, Gic::V3, &description);
        let too_long = matches!(result, Err(FdtError::CmdlineTooLong(n)) if n == length);
        assert_eq!(too_long, refused, "{length}: {result:?}");
    }
}
