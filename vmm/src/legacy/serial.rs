//! The serial console, an 8250 at COM1 or in memory, for output only and only when asked for.
//!
//! Threat: a guest that floods it, or whose output nobody reads. Each byte goes to the descriptor at
//! once and none is kept; see [`super::output`] for how little that may cost.

use std::io;
use std::os::fd::OwnedFd;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::output::Output;
use crate::bus::BusDevice;

/// Interrupt of COM1.
pub const COM1_GSI: u32 = 4;

/// The console.
pub struct Serial {
    uart: Uart<Line, NoEvents, Output>,
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Serial {
    /// A console that prints to `output` and interrupts by `line`.
    #[must_use]
    pub fn new(output: OwnedFd, line: EventFd) -> Self {
        Self {
            uart: Uart::new(Line(line), Output::new(output)),
        }
    }

    /// Reads a register, 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        self.uart.read(u8::try_from(register).unwrap_or(u8::MAX))
    }

    /// Writes a register, 0 to 7.
    pub fn write(&mut self, register: u16, value: u8) {
        // All that can fail is an interrupt that is pending anyway.
        let _ = (self.uart).write(u8::try_from(register).unwrap_or(u8::MAX), value);
    }
}

/// In memory, a register is a byte at its number.
impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(register)) = (data, u16::try_from(offset)) {
            *byte = Self::read(self, register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(register)) = (data, u16::try_from(offset)) {
            Self::write(self, register, byte);
        }
    }
}
