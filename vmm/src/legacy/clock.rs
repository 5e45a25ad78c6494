//! The real-time clock, a PL031: the time of day for a kernel that has no other when it starts. It has
//! no alarm.
//!
//! Threat: none beyond what it tells. A guest may set it, for itself alone.

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use crate::bus::BusDevice;

/// The clock.
pub struct Clock(Rtc<NoEvents>);

impl Default for Clock {
    fn default() -> Self {
        Self(Rtc::new())
    }
}

/// Its registers are words (PL031 TRM §3.2); all else reads as zero.
impl BusDevice for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(data), Ok(offset)) = (data.try_into(), u16::try_from(offset)) {
            self.0.read(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(data), Ok(offset)) = (data.try_into(), u16::try_from(offset)) {
            self.0.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const DATA: u64 = 0;
    const LOAD: u64 = 8;

    fn read(clock: &mut Clock, offset: u64) -> u64 {
        let mut word = [0; 4];
        clock.read(offset, &mut word);
        u32::from_le_bytes(word).into()
    }

    #[test]
    fn a_guest_finds_the_time_of_day() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let told = read(&mut Clock::default(), DATA);
        assert!((now..now + 60).contains(&told), "{told} at {now}");
    }

    #[test]
    fn a_guest_that_sets_it_finds_what_it_set() {
        let mut clock = Clock::default();
        clock.write(LOAD, &77_u32.to_le_bytes());
        assert!((77..77 + 60).contains(&read(&mut clock, DATA)));
    }

    #[test]
    fn every_register_can_be_read_and_written_at_every_width() {
        let mut clock = Clock::default();
        for offset in 0..0x1000 {
            for width in [1, 2, 4, 8] {
                clock.write(offset, &[0xff; 8][..width]);
                clock.read(offset, &mut [0; 8][..width]);
            }
        }
    }

    /// The AMBA bus binds a driver by these (PL031 TRM §3.3.9).
    #[test]
    fn it_tells_what_it_is() {
        let mut clock = Clock::default();
        let words = (0xfe0..0x1000).step_by(4).map(|at| read(&mut clock, at));
        let expected = [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1];
        assert_eq!(words.collect::<Vec<_>>(), expected);
    }
}
