//! The MP table (Intel MultiProcessor Specification 1.4 §4): which processors there are, and which
//! interrupt goes where. There is no ACPI to say so.

use vm_memory::{Bytes, GuestAddress};

use super::layout::{IOAPIC, LAST_DEVICE_GSI, LOCAL_APIC, MP_TABLE};
use crate::memory::Ram;

/// Why the table could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write the MP table")]
pub struct MpTableError(#[from] vm_memory::GuestMemoryError);

const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;
/// Destination "all local APICs".
const ALL_APICS: u8 = 0xff;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Writes the floating pointer and, behind it, the table.
pub(super) fn write(ram: &Ram, vcpus: u8) -> Result<(), MpTableError> {
    let table = table(vcpus);
    let at = MP_TABLE + POINTER_LEN as u64;
    ram.write_slice(&floating_pointer(at), GuestAddress(MP_TABLE))?;
    ram.write_slice(&table, GuestAddress(at))?;
    Ok(())
}

const POINTER_LEN: usize = 16;

/// §4.1: signature, address, length in 16-byte units, revision, checksum, features.
fn floating_pointer(table: u64) -> [u8; POINTER_LEN] {
    let mut bytes = [0; POINTER_LEN];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&u32::try_from(table).expect("below 1 MiB").to_le_bytes());
    bytes[8] = 1;
    bytes[9] = 4;
    bytes[10] = checksum(&bytes);
    bytes
}

/// §4.2 and §4.3: the header and its entries.
fn table(vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        // Type, id, version, flags, signature (family 6), features (FPU, APIC), reserved.
        add(&[
            0,
            id,
            APIC_VERSION,
            flags,
            0,
            6,
            0,
            0,
            1,
            2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IOAPIC.to_le_bytes();
    add(&[2, ioapic_id, IOAPIC_VERSION, ENABLED, a, b, c, d]);
    // Flags 0: as the bus has it, which for ISA is edge and active high: what an irqfd gives.
    for gsi in 0..=u8::try_from(LAST_DEVICE_GSI).expect("24 inputs") {
        add(&[3, INT, 0, 0, ISA_BUS, gsi, ioapic_id, gsi]);
    }
    add(&[4, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_APICS, 1]);

    let mut table = vec![0; 44];
    let length = u16::try_from(table.len() + entries.len()).expect("at most 255 processors");
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = 4;
    table[8..16].copy_from_slice(b"HULL    ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn pointer_and_table_add_up_to_zero() {
        assert_eq!(sum(&floating_pointer(0xf_0010)), 0);
        for vcpus in [1, 2, 64, 254] {
            assert_eq!(sum(&table(vcpus)), 0, "{vcpus}");
        }
    }

    #[test]
    fn the_header_counts_its_entries_and_bytes() {
        let table = table(3);
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
        let mut at = 44;
        let mut count = 0;
        while at < table.len() {
            at += if table[at] == 0 { 20 } else { 8 };
            count += 1;
        }
        assert_eq!(at, table.len());
        assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
    }

    #[test]
    fn the_first_processor_alone_boots() {
        let table = table(2);
        assert_eq!((table[44 + 3], table[64 + 3]), (3, 1));
    }
}
