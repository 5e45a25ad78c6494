//! The few port-I/O devices of a PC that a guest of ours can meet.

mod reset;
mod serial;

pub use reset::{Reset, ResetPort};
pub use serial::{COM1_GSI, Serial};

/// First port of the serial console, COM1.
const COM1: u16 = 0x3f8;
const COM1_LEN: u16 = 8;
/// Command and status port of the keyboard controller.
const I8042_COMMAND: u16 = 0x64;

/// All ports.
pub struct Ports {
    serial: Option<Serial>,
}

impl Ports {
    /// The ports of a machine with or without a console.
    #[must_use]
    pub fn new(serial: Option<Serial>) -> Self {
        Self { serial }
    }

    /// A guest's `in`. Where nothing is, all bits are set.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (I8042_COMMAND, [byte]) => *byte = ResetPort::STATUS,
            (COM1.., [byte]) if port < COM1 + COM1_LEN => {
                if let Some(serial) = &mut self.serial {
                    *byte = serial.read(port - COM1);
                }
            }
            _ => {}
        }
    }

    /// A guest's `out`; tells when it asks for a reset.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Reset> {
        match (port, data) {
            (I8042_COMMAND, &[command]) => return ResetPort::command(command),
            (COM1.., &[byte]) if port < COM1 + COM1_LEN => {
                if let Some(serial) = &mut self.serial {
                    serial.write(port - COM1, byte);
                }
            }
            _ => {}
        }
        None
    }
}
