//! Waiting for something to come true, with an end.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on an emulated machine before it counts as never happening.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// Returns what `probe` finds as soon as it finds something.
///
/// # Panics
/// When that takes longer than [`PATIENCE`]; the message says what was awaited.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain: {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}
