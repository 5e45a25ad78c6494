//! The guest's wall clock, which the shim holds to the host's.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::sys;

/// A difference up to this is made up for little by little, at half a millisecond a second, so that no program sees
/// time leap or go back.
const SLEWED: Duration = Duration::from_millis(100);

/// Nanoseconds since 1970.
///
/// # Errors
/// None that is known.
pub fn now() -> io::Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let seconds = now.tv_sec().saturating_mul(1_000_000_000);
    Ok(seconds.saturating_add(now.tv_nsec()))
}

/// Has the clock go on by `nanoseconds`, or back: in time if it is little, which ends what is left of the adjustment
/// before, and at once otherwise.
///
/// # Errors
/// `EINVAL`: to before 1970, or to when there will be no such clock any more.
pub fn adjust(nanoseconds: i64) -> io::Result<()> {
    if nanoseconds == 0 {
        Ok(())
    } else if Duration::from_nanos(nanoseconds.unsigned_abs()) <= SLEWED {
        sys::slew_clock(nanoseconds / 1000)
    } else {
        sys::step_clock(nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn it_is_told_since_1970() {
        let now = Duration::from_nanos(now().unwrap().unsigned_abs());
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        assert!(since.abs_diff(now) < Duration::from_secs(60));
    }

    #[test]
    fn nothing_to_adjust_takes_no_rights() {
        adjust(0).unwrap();
    }
}
