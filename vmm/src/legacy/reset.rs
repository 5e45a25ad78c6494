//! The reset line of the i8042 keyboard controller, all of it that there is.

/// The guest asked for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset;

/// Port 0x64.
pub struct ResetPort;

impl ResetPort {
    /// Nothing to read and room to write: what the kernel waits for before it sends a command.
    pub const STATUS: u8 = 0;

    /// Pulses the processor's reset line (`reboot=k`).
    const PULSE_RESET: u8 = 0xfe;

    /// Takes a command.
    #[must_use]
    pub fn command(command: u8) -> Option<Reset> {
        (command == Self::PULSE_RESET).then_some(Reset)
    }
}
