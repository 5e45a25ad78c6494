//! The wall clock (adjtimex(2)).

#![expect(unsafe_code, reason = "no crate of ours has adjtimex(2)")]

use std::io;

use nix::errno::Errno;

/// Has the clock make up for `microseconds` by going faster or slower; what was left to make up for is not any more.
///
/// # Errors
/// `EPERM`.
pub fn slew_clock(microseconds: i64) -> io::Result<()> {
    let mut change = unchanged();
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = microseconds;
    adjust(change)
}

/// Has the clock leap by `nanoseconds`, back if they are negative.
///
/// # Errors
/// `EPERM`; `EINVAL` when no clock can show what comes of it.
pub fn step_clock(nanoseconds: i64) -> io::Result<()> {
    let mut change = unchanged();
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // With ADJ_NANO it is nanoseconds in spite of its name.
    (change.time.tv_sec, change.time.tv_usec) = parts(nanoseconds);
    adjust(change)
}

/// As seconds and nanoseconds, of which the latter are added in any case.
fn parts(nanoseconds: i64) -> (i64, i64) {
    (
        nanoseconds.div_euclid(1_000_000_000),
        nanoseconds.rem_euclid(1_000_000_000),
    )
}

fn unchanged() -> libc::timex {
    // SAFETY: the structure is made of integers, for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn adjust(mut change: libc::timex) -> io::Result<()> {
    // SAFETY: the kernel reads the structure and writes the clock's state to it.
    Errno::result(unsafe { libc::adjtimex(&raw mut change) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_second_is_never_negative() {
        assert_eq!(parts(1_500_000_000), (1, 500_000_000));
        assert_eq!(parts(-1), (-1, 999_999_999));
        assert_eq!(parts(-2_000_000_000), (-2, 0));
    }
}
