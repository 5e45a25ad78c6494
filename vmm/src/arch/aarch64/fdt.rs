//! The device tree: all that the kernel learns of its machine (Devicetree Specification 0.4, and the
//! kernel's own Documentation/devicetree/bindings).

use rustix::rand::{GetRandomFlags, getrandom};
use vm_fdt::FdtWriter;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::gic::Gic;
use super::{affinity, layout};
use crate::arch::Description;
use crate::memory::Ram;

/// Why the kernel could not be told.
#[derive(Debug, thiserror::Error)]
pub enum FdtError {
    /// The command line does not fit.
    #[error(
        "kernel command line of {0} bytes, of which the kernel would forget all after {CMDLINE_LEN}"
    )]
    CmdlineTooLong(usize),
    /// The tree cannot be written down.
    #[error("compose the device tree")]
    Compose(#[from] vm_fdt::Error),
    /// The tree is larger than the kernel maps.
    #[error("the device tree has {0} bytes, of which the kernel reads {most}", most = layout::FDT_LEN)]
    TooLarge(usize),
    /// The host has no random numbers.
    #[error("draw the kernel's seeds")]
    Seed(#[source] rustix::io::Errno),
    /// The guest's memory is smaller than the tree.
    #[error("write the device tree")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What the kernel keeps of its command line (asm/setup.h, `COMMAND_LINE_SIZE`, with its end).
const CMDLINE_LEN: usize = 2047;

/// Handles by which nodes name each other.
const GIC: u32 = 1;
const BUS_CLOCK: u32 = 2;

/// Kinds of interrupts and how they are signalled (dt-bindings/interrupt-controller/arm-gic.h, irq.h).
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const RISING_EDGE: u32 = 1;

/// The architected timer's private interrupts: secure, non-secure, virtual, hypervisor.
const TIMERS: [u32; 4] = [13, 14, 11, 10];

/// Hertz: of the bus, which drivers ask for, and of the serial port, whose speed nobody minds.
const BUS_CLOCK_RATE: u32 = 24_000_000;
const SERIAL_CLOCK_RATE: u32 = 1_843_200;

/// Random numbers for the guest's kernel, which has no others when it starts.
struct Seeds {
    /// For its generator.
    generator: [u8; 64],
    /// For its own place in memory.
    address: u64,
}

impl Seeds {
    fn draw() -> Result<Self, FdtError> {
        let mut generator = [0; 64];
        let mut address = [0; 8];
        for seed in [generator.as_mut_slice(), &mut address] {
            // The kernel gives up to 256 bytes at once (getrandom(2)).
            getrandom(seed, GetRandomFlags::empty()).map_err(FdtError::Seed)?;
        }
        let address = u64::from_ne_bytes(address);
        Ok(Self { generator, address })
    }
}

/// Writes the tree where [`layout::FDT`] is; returns that.
pub(super) fn write(
    ram: &Ram,
    gic: Gic,
    description: &Description<'_>,
) -> Result<GuestAddress, FdtError> {
    if description.cmdline.len() > CMDLINE_LEN {
        return Err(FdtError::CmdlineTooLong(description.cmdline.len()));
    }
    let memory: Vec<u64> = (ram.iter())
        .flat_map(|region| [region.start_addr().0, region.len()])
        .collect();
    let tree = compose(&memory, gic, description, &Seeds::draw()?)?;
    if tree.len() as u64 > layout::FDT_LEN {
        return Err(FdtError::TooLarge(tree.len()));
    }
    let address = GuestAddress(layout::FDT);
    ram.write_slice(&tree, address)?;
    Ok(address)
}

fn compose(
    memory: &[u64],
    gic: Gic,
    description: &Description<'_>,
    seeds: &Seeds,
) -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "Hull")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, description, seeds)?;
    processors(&mut fdt, gic, description.vcpus)?;

    let node = fdt.begin_node(&format!("memory@{:x}", layout::RAM))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", memory)?;
    fdt.end_node(node)?;

    interrupt_controller(&mut fdt, gic, description.vcpus)?;
    clocks(&mut fdt)?;
    if description.serial {
        serial(&mut fdt)?;
    }
    // Drivers are probed in this order, so it makes the devices' names.
    for &(address, gsi) in description.devices {
        virtio(&mut fdt, address, gsi)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// Devicetree Specification §3.6, and bindings "chosen".
fn chosen(
    fdt: &mut FdtWriter,
    description: &Description<'_>,
    seeds: &Seeds,
) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", description.cmdline)?;
    if description.serial {
        fdt.property_string("stdout-path", &format!("/{}", serial_name()))?;
    }
    if let Some((address, length)) = description.initrd {
        fdt.property_u64("linux,initrd-start", address.0)?;
        fdt.property_u64("linux,initrd-end", address.0 + length)?;
    }
    fdt.property_u64("kaslr-seed", seeds.address)?;
    fdt.property("rng-seed", &seeds.generator)?;
    fdt.end_node(node)
}

/// bindings/arm/cpus.yaml, psci.yaml, bindings/timer/arm,arch_timer.yaml: processors that are turned
/// on by a call of the hypervisor, with a timer each.
fn processors(fdt: &mut FdtWriter, gic: Gic, vcpus: u8) -> Result<(), vm_fdt::Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..vcpus {
        let affinity = u32::try_from(affinity::of(id)).expect("12 bits of a vCPU's 8");
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", affinity)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let node = fdt.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2"].map(str::to_owned);
    fdt.property_string_list("compatible", versions.to_vec())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let flags = gic.private_level(vcpus);
    let interrupts = TIMERS.map(|number| [PRIVATE, number, flags]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

/// bindings/interrupt-controller/arm,gic.yaml, arm,gic-v3.yaml. No ITS: nothing here sends messages.
fn interrupt_controller(fdt: &mut FdtWriter, gic: Gic, vcpus: u8) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!(
        "interrupt-controller@{:x}",
        layout::GIC_DISTRIBUTOR
    ))?;
    fdt.property_string("compatible", gic.compatible())?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    let registers = gic.registers(vcpus).map(|(base, length)| [base, length]);
    fdt.property_array_u64("reg", registers.as_flattened())?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

/// bindings/rtc/arm,pl031.yaml without its alarm; bindings/clock/fixed-clock.yaml, which drivers of
/// its kind ask for.
fn clocks(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("apb-clock")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", BUS_CLOCK_RATE)?;
    fdt.property_phandle(BUS_CLOCK)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("rtc@{:x}", layout::CLOCK))?;
    let kinds = ["arm,pl031", "arm,primecell"].map(str::to_owned);
    fdt.property_string_list("compatible", kinds.to_vec())?;
    fdt.property_array_u64("reg", &[layout::CLOCK, layout::SLOT_LEN])?;
    fdt.property_u32("clocks", BUS_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

fn serial_name() -> String {
    format!("serial@{:x}", layout::SERIAL)
}

/// bindings/serial/8250.yaml.
fn serial(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&serial_name())?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[layout::SERIAL, layout::SLOT_LEN])?;
    fdt.property_array_u32("interrupts", &[SHARED, layout::SERIAL_GSI, RISING_EDGE])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK_RATE)?;
    fdt.end_node(node)
}

/// bindings/virtio/mmio.yaml. The interrupt is an eventfd's, which KVM makes a pulse.
fn virtio(fdt: &mut FdtWriter, address: u64, gsi: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("virtio@{address:x}"))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[address, layout::SLOT_LEN])?;
    fdt.property_array_u32("interrupts", &[SHARED, gsi, RISING_EDGE])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests;
