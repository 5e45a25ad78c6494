//! What a case is made of.

use std::fmt;
use std::panic::Location;

use rustix::io::Errno;

/// One promise and the function that tests it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The manual page that makes the promise; without a section, POSIX's.
    pub(crate) promise: &'static str,
    pub(crate) run: fn() -> Outcome,
}

impl Case {
    pub(crate) const fn new(
        name: &'static str,
        promise: &'static str,
        run: fn() -> Outcome,
    ) -> Self {
        Self { name, promise, run }
    }
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a promise was not kept, and where that was noticed.
pub(crate) struct Failure {
    reason: String,
    place: &'static Location<'static>,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} ({}:{})",
            self.reason,
            self.place.file(),
            self.place.line()
        )
    }
}

/// `?` on any error: the case expected none.
impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self {
            reason: error.to_string(),
            place: Location::caller(),
        }
    }
}

/// Fails with `reason` unless `condition` holds.
#[track_caller]
pub(crate) fn holds(condition: bool, reason: &str) -> Outcome {
    let place = Location::caller();
    if condition {
        return Ok(());
    }
    Err(Failure {
        reason: reason.to_owned(),
        place,
    })
}

/// Fails unless `found` is `expected`.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "both are made for this call")]
pub(crate) fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    holds(
        found == expected,
        &format!("{what} is {found:?}, not {expected:?}"),
    )
}

/// Fails unless the call was refused with `errno`.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "made for this call")]
pub(crate) fn refused<T>(errno: Errno, result: Result<T, Errno>) -> Outcome {
    match result {
        Ok(_) => holds(false, &format!("succeeded instead of {errno:?}")),
        Err(found) => holds(
            found == errno,
            &format!("refused with {found:?}, not {errno:?}"),
        ),
    }
}
