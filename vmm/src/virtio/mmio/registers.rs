//! What each register is (virtio 1.3 §4.2.2).

use virtio_queue::QueueT;

use super::Mmio;
use crate::bus::RegisterPage;
use crate::virtio::device::Device;

pub(super) const MAGIC_VALUE: u64 = 0x000;
pub(super) const VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(super) const QUEUE_SEL: u64 = 0x030;
pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(super) const QUEUE_SIZE: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
/// Where the driver notifies; ioeventfds take these writes before they reach us.
pub const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
/// Where the driver acknowledges an interrupt; KVM takes [`USED_BUFFER`] alone before it reaches us.
pub const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
pub(super) const SHM_LEN_HIGH: u64 = 0x0b4;
pub(super) const SHM_BASE_LOW: u64 = 0x0b8;
pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
pub(super) const CONFIG: u64 = RegisterPage::CONFIG;

/// Those of them that read as something.
pub(super) const READABLE: [u64; 14] = [
    MAGIC_VALUE,
    VERSION,
    DEVICE_ID,
    VENDOR_ID,
    DEVICE_FEATURES,
    QUEUE_SIZE_MAX,
    QUEUE_READY,
    INTERRUPT_STATUS,
    STATUS,
    SHM_LEN_LOW,
    SHM_LEN_HIGH,
    SHM_BASE_LOW,
    SHM_BASE_HIGH,
    CONFIG_GENERATION,
];

/// `InterruptStatus` bit 0: the device used a buffer (§4.2.2).
///
/// It is set as long as the device is live, which departs from §4.2.2.1: set from the first use until it
/// is acknowledged. Whoever used a buffer, a daemon perhaps, raises the line and
/// no more, and a driver finds out in the ring which of them were used. So to acknowledge it changes
/// nothing, and need not reach us.
pub const USED_BUFFER: u32 = 1 << 0;
/// `InterruptStatus` bit 1: the configuration changed.
pub(super) const CONFIG_CHANGE: u32 = 1 << 1;

/// "virt", little endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// "HULL", little endian.
pub(super) const VENDOR: u32 = 0x4c4c_5548;

impl<D: Device> Mmio<D> {
    pub(super) fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => 2,
            DEVICE_ID => self.device.id() as u32,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => word(self.offered(), self.features_select),
            QUEUE_SIZE_MAX => self.selected().map_or(0, |ring| ring.max_size().into()),
            QUEUE_READY => self.selected().map_or(0, |ring| ring.ready().into()),
            INTERRUPT_STATUS => self.interrupt_status(),
            STATUS => self.status.bits(),
            // Length and base of all ones: there is no such shared memory region (§4.2.2).
            SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => u32::MAX,
            // A driver that reads a field in parts, or several, reads until this has not changed
            // meanwhile (§2.5.2).
            CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    pub(super) fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.features_select = value,
            DRIVER_FEATURES_SEL => self.driver_features_select = value,
            DRIVER_FEATURES if self.status.negotiates() => {
                set_word(
                    &mut self.driver_features,
                    self.driver_features_select,
                    value,
                );
            }
            QUEUE_SEL => self.queue_select = value,
            QUEUE_SIZE => {
                if let (Some(ring), Ok(size)) = (self.configurable(), u16::try_from(value)) {
                    ring.set_size(size);
                }
            }
            QUEUE_READY if value == 1 => {
                if let Some(ring) = self.configurable() {
                    ring.set_ready(true);
                }
            }
            // A driver may give a queue up again, and reads that it has (§4.2.2.2). Once the device is live
            // a 0 is ignored: only a reset stops a queue then.
            QUEUE_READY if value == 0 && self.status.configures_queues() => {
                if let Some(ring) = self.rings.get_mut(self.queue_select as usize) {
                    ring.set_ready(false);
                }
            }
            // A write the ioeventfd did not take: of another width, or by a slow path.
            QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            INTERRUPT_ACK if value & CONFIG_CHANGE != 0 => self.config_change = false,
            STATUS => self.write_status(value),
            _ => self.write_address(offset, value),
        }
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let Some(ring) = self.configurable() else {
            return;
        };
        match offset {
            QUEUE_DESC_LOW => ring.set_desc_table_address(Some(value), None),
            QUEUE_DESC_HIGH => ring.set_desc_table_address(None, Some(value)),
            QUEUE_DRIVER_LOW => ring.set_avail_ring_address(Some(value), None),
            QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, Some(value)),
            QUEUE_DEVICE_LOW => ring.set_used_ring_address(Some(value), None),
            QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

/// Half `select` of a 64-bit value; there are two.
fn word(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_word(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(half),
        1 => *value = (*value & 0xffff_ffff) | (u64::from(half) << 32),
        _ => {}
    }
}
