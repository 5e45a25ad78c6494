//! The interrupt controller: a GICv3, or a GICv2 on boards that have no more.

use super::layout;

/// Which one the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gic {
    /// Version 2: Raspberry Pi 4 and others of its time.
    V2,
    /// Version 3 or 4, as the guest sees it.
    V3,
}

/// More processors than the interrupt controller reaches.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host's interrupt controller, a {gic:?}, reaches {most} processors, not {vcpus}")]
pub struct TooManyVcpus {
    /// Which one it is.
    gic: Gic,
    /// The processors it reaches.
    most: u8,
    /// The processors asked for.
    vcpus: u8,
}

impl Gic {
    /// Whether it reaches `vcpus` processors.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn admit(self, vcpus: u8) -> Result<(), TooManyVcpus> {
        let most = match self {
            Self::V2 => 8,
            Self::V3 => layout::MAX_VCPUS,
        };
        if vcpus <= most {
            Ok(())
        } else {
            let gic = self;
            Err(TooManyVcpus { gic, most, vcpus })
        }
    }

    /// Its name in the device tree (bindings/interrupt-controller/arm,gic.yaml, arm,gic-v3.yaml).
    pub(super) fn compatible(self) -> &'static str {
        match self {
            Self::V2 => "arm,cortex-a15-gic",
            Self::V3 => "arm,gic-v3",
        }
    }

    /// Its registers, addresses and lengths: the distributor's, then those of the processors.
    pub(super) fn registers(self, vcpus: u8) -> [(u64, u64); 2] {
        match self {
            Self::V2 => [
                (layout::GIC_DISTRIBUTOR, layout::GIC_V2_DISTRIBUTOR_LEN),
                (layout::GIC_V2_INTERFACE, layout::GIC_V2_INTERFACE_LEN),
            ],
            Self::V3 => [
                (layout::GIC_DISTRIBUTOR, layout::GIC_V3_DISTRIBUTOR_LEN),
                (
                    layout::GIC_V3_REDISTRIBUTORS,
                    u64::from(vcpus) * layout::GIC_V3_REDISTRIBUTOR_LEN,
                ),
            ],
        }
    }

    /// The flags of an interrupt that each of `vcpus` has for itself, active while its line is high:
    /// version 2 also wants to know who has it.
    pub(super) fn private_level(self, vcpus: u8) -> u32 {
        /// IRQ_TYPE_LEVEL_HIGH (dt-bindings/interrupt-controller/irq.h).
        const LEVEL: u32 = 4;
        match self {
            Self::V2 => ((1 << vcpus.min(8)) - 1) << 8 | LEVEL,
            Self::V3 => LEVEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_reaches_eight_processors_and_version_3_all() {
        assert_eq!(Gic::V2.admit(8), Ok(()));
        assert_eq!(
            Gic::V2.admit(9).unwrap_err().to_string(),
            "the host's interrupt controller, a V2, reaches 8 processors, not 9"
        );
        assert_eq!(Gic::V3.admit(layout::MAX_VCPUS), Ok(()));
    }
}
