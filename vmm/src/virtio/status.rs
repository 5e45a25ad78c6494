//! The device status field (virtio 1.3 §2.1): what a driver may write when.
//!
//! ```text
//! 0 ─ACKNOWLEDGE─▶ 1 ─DRIVER─▶ 3 ─FEATURES_OK─▶ 11 ─DRIVER_OK─▶ 15 (live)
//! ▲ └─────────────── FAILED and, by the device, NEEDS_RESET at any time
//! └── writing 0, at any time
//! ```
//! Every value can be written in every state; what is not an arrow above changes nothing.

/// `ACKNOWLEDGE`: the guest has found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// `DRIVER`: the guest knows how to drive it.
pub const DRIVER: u32 = 2;
/// `DRIVER_OK`: the driver is set up.
pub const DRIVER_OK: u32 = 4;
/// `FEATURES_OK`: features are agreed on.
pub const FEATURES_OK: u32 = 8;
/// `DEVICE_NEEDS_RESET`: the device cannot go on. Only the device sets it.
pub const NEEDS_RESET: u32 = 64;
/// `FAILED`: the driver has given up.
pub const FAILED: u32 = 128;

/// The steps in their order; each needs all before it.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The status of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(u32);

/// What a write to the status means for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but the bits.
    None,
    /// The device starts over.
    Reset,
    /// The device goes live.
    Activate,
}

impl Status {
    /// What the driver reads.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether the driver may choose features: from `DRIVER` until `FEATURES_OK`.
    #[must_use]
    pub fn negotiates(self) -> bool {
        self.0 & (DRIVER | FEATURES_OK | FAILED) == DRIVER
    }

    /// Whether the driver may set queues up: from `FEATURES_OK` until `DRIVER_OK` (CVE-2026-5747:
    /// a peer let it do so afterwards).
    #[must_use]
    pub fn configures_queues(self) -> bool {
        self.0 & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK
    }

    /// Whether the device works for the driver.
    #[must_use]
    pub fn is_live(self) -> bool {
        self.0 & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Notes that only a reset helps.
    pub fn needs_reset(&mut self) {
        self.0 |= NEEDS_RESET;
    }

    /// The driver writes `value`. `acceptable` tells whether the device can work with the features
    /// that are chosen: `FEATURES_OK` stays clear otherwise (virtio 1.3 §2.2.2).
    pub fn write(&mut self, value: u32, acceptable: bool) -> Effect {
        if value == 0 {
            *self = Self::default();
            return Effect::Reset;
        }
        // "The driver MUST NOT clear a device status bit" (§2.1.1).
        let kept = self.0 & !NEEDS_RESET;
        if value & kept != kept || self.0 & FAILED != 0 {
            return Effect::None;
        }
        if value & FAILED != 0 {
            self.0 |= FAILED;
            return Effect::None;
        }
        let was_live = self.is_live();
        for step in STEPS {
            if value & step == 0 || (step == FEATURES_OK && !acceptable && self.0 & step == 0) {
                break;
            }
            self.0 |= step;
        }
        if self.is_live() && !was_live {
            Effect::Activate
        } else {
            Effect::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All states that writes can lead to.
    fn reachable() -> Vec<Status> {
        let mut found = vec![Status::default()];
        let mut next = 0;
        while let Some(&state) = found.get(next) {
            next += 1;
            for value in 0..=255 {
                for acceptable in [false, true] {
                    let mut after = state;
                    after.write(value, acceptable);
                    let mut broken = after;
                    broken.needs_reset();
                    for state in [after, broken] {
                        if !found.contains(&state) {
                            found.push(state);
                        }
                    }
                }
            }
        }
        found
    }

    #[test]
    fn the_steps_in_order_lead_to_a_live_device() {
        let mut status = Status::default();
        assert_eq!(status.write(1, true), Effect::None);
        assert_eq!(status.write(3, true), Effect::None);
        assert!(status.negotiates());
        assert_eq!(status.write(11, true), Effect::None);
        assert!(status.configures_queues() && !status.negotiates());
        assert_eq!(status.write(15, true), Effect::Activate);
        assert!(status.is_live() && !status.configures_queues());
        assert_eq!(status.write(15, true), Effect::None);
        assert_eq!(status.write(0, true), Effect::Reset);
        assert_eq!(status.bits(), 0);
    }

    #[test]
    fn unacceptable_features_leave_features_ok_clear() {
        let mut status = Status::default();
        status.write(3, true);
        assert_eq!(status.write(15, false), Effect::None);
        assert_eq!(status.bits(), 3);
    }

    #[test]
    fn no_write_in_any_state_skips_a_step_or_clears_a_bit() {
        let states = reachable();
        assert!(states.len() > 10);
        for state in states {
            let steps = STEPS.map(|step| state.bits() & step != 0);
            assert!(
                steps.is_sorted_by(|before, after| before >= after),
                "{state:?}"
            );
            for value in 1..=255 {
                let mut after = state;
                after.write(value, true);
                assert_eq!(
                    after.bits() & state.bits(),
                    state.bits(),
                    "{state:?} {value}"
                );
                assert_eq!(after.bits() & NEEDS_RESET, state.bits() & NEEDS_RESET);
            }
        }
    }

    #[test]
    fn a_failed_or_broken_device_goes_live_only_after_a_reset() {
        for mut state in reachable() {
            if state.bits() & (FAILED | NEEDS_RESET) != 0 {
                for value in 1..=255 {
                    assert_ne!(state.write(value, true), Effect::Activate);
                }
            }
        }
    }
}
