//! The few devices besides virtio's that a guest of ours can meet: on x86_64 at a PC's ports, on
//! aarch64 in memory.

mod clock;
mod output;
mod reset;
mod serial;

pub use clock::Clock;
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    const TRANSMIT: u16 = COM1;
    const INTERRUPT_ENABLE: u16 = COM1 + 1;
    const MODEM_CONTROL: u16 = COM1 + 4;
    const LINE_STATUS: u16 = COM1 + 5;
    const DATA_READY: u8 = 1;

    fn console() -> (Ports, File, EventFd) {
        let file = tempfile::tempfile().unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(file.try_clone().unwrap().into(), line.try_clone().unwrap());
        (Ports::new(Some(serial)), file, line)
    }

    fn read(ports: &mut Ports, port: u16) -> u8 {
        let mut byte = [0];
        ports.read(port, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_prints_is_in_the_file() {
        let (mut ports, mut file, _line) = console();
        for &byte in b"tide" {
            assert!(
                read(&mut ports, LINE_STATUS) & 0x20 != 0,
                "room to transmit"
            );
            assert_eq!(ports.write(TRANSMIT, &[byte]), None);
        }
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "tide");
    }

    #[test]
    fn a_guest_that_asks_for_it_is_interrupted_when_it_can_transmit() {
        let (mut ports, _file, line) = console();
        assert!(line.read().is_err());
        ports.write(INTERRUPT_ENABLE, &[2]);
        ports.write(TRANSMIT, b"x");
        assert!(line.read().is_ok());
    }

    /// A serial port that kept what nobody read grew without end. Ours has no input but what the
    /// guest sends to itself, in loopback.
    #[test]
    fn cve_2020_27173_a_flood_of_input_is_bounded() {
        let (mut ports, mut file, _line) = console();
        let loopback = 0x10;
        ports.write(MODEM_CONTROL, &[loopback]);
        for _ in 0..10_000 {
            ports.write(TRANSMIT, b"x");
        }
        let mut kept = 0;
        while read(&mut ports, LINE_STATUS) & DATA_READY != 0 {
            read(&mut ports, TRANSMIT);
            kept += 1;
        }
        assert!((1..=64).contains(&kept), "{kept}");
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "");
    }

    #[test]
    fn without_a_console_there_is_nothing_at_its_ports() {
        let mut ports = Ports::new(None);
        for port in COM1..COM1 + COM1_LEN {
            assert_eq!(ports.write(port, b"x"), None);
            assert_eq!(read(&mut ports, port), 0xff);
        }
    }

    #[test]
    fn only_the_reset_pulse_at_the_command_port_resets() {
        let mut ports = Ports::new(None);
        for value in 0..=u8::MAX {
            let expected = (value == 0xfe).then_some(Reset);
            assert_eq!(ports.write(0x64, &[value]), expected, "{value:#x}");
            assert_eq!(ports.write(0x60, &[value]), None);
        }
        assert_eq!(ports.write(0x64, &[0xfe, 0xfe]), None);
        assert_eq!(read(&mut ports, 0x64), 0);
    }

    #[test]
    fn every_port_can_be_read_and_written_at_every_width() {
        let (mut with, _file, _line) = console();
        for ports in [&mut with, &mut Ports::new(None)] {
            for port in 0..=u16::MAX {
                for width in [1, 2, 4] {
                    let mut data = [0; 4];
                    ports.read(port, &mut data[..width]);
                    assert_eq!(ports.write(port, &[0; 4][..width]), None);
                }
            }
        }
    }
}
