//! The header before each frame (virtio 1.3 §5.1.6): what the guest may ask the host's stack for.
//! Pure.
//!
//! The host's kernel checks the header as well. Refusing here what was never negotiated keeps the
//! rarer paths of its parser out of a guest's reach.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};

use crate::backend::tap::{Offloads, VNET_HEADER_LEN};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1 << 0;
/// `VIRTIO_NET_HDR_GSO_*`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Or'ed to the type.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`. `num_buffers` is ours to write, and not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// Why a frame is not sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The feature it uses was not negotiated, or is unknown.
    Feature,
    /// The checksum's place is not in the frame.
    Checksum,
    /// A segment has no size, or the segments no checksum.
    Segments,
}

impl Header {
    /// Reads the fields, whatever they say.
    pub(super) fn decode(bytes: &[u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, _, _, g, h, i, j, k, l, _, _] = *bytes;
        Self {
            flags,
            gso_type,
            gso_size: u16::from_le_bytes([g, h]),
            csum_start: u16::from_le_bytes([i, j]),
            csum_offset: u16::from_le_bytes([k, l]),
        }
    }

    /// Whether a frame of `len` bytes may be sent under the negotiated `features` (virtio 1.3
    /// §5.1.6.2.1).
    pub(super) fn check(&self, features: u64, len: usize) -> Result<(), Refusal> {
        let has = |bit: u32| features & 1 << bit != 0;
        let needs_csum = match self.flags {
            0 => false,
            NEEDS_CSUM if has(VIRTIO_NET_F_CSUM) => true,
            _ => return Err(Refusal::Feature),
        };
        if needs_csum {
            // Sixteen bits each: no overflow. The checksum has two bytes.
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if end > len {
                return Err(Refusal::Checksum);
            }
        }
        let (kind, ecn) = (self.gso_type & !GSO_ECN, self.gso_type & GSO_ECN != 0);
        match kind {
            GSO_NONE if !ecn => return Ok(()),
            GSO_TCPV4 if has(VIRTIO_NET_F_HOST_TSO4) => {}
            GSO_TCPV6 if has(VIRTIO_NET_F_HOST_TSO6) => {}
            _ => return Err(Refusal::Feature),
        }
        if ecn && !has(VIRTIO_NET_F_HOST_ECN) {
            return Err(Refusal::Feature);
        }
        if self.gso_size == 0 || !needs_csum {
            return Err(Refusal::Segments);
        }
        Ok(())
    }
}

/// What the driver can receive, by the features it accepted.
pub(super) fn offloads(features: u64) -> Offloads {
    // virtio 1.3 §5.1.3.1: the others require VIRTIO_NET_F_GUEST_CSUM. A driver that accepted them
    // without it gets none.
    let accepted = |bit: u32| features & 1 << bit != 0;
    let has = |bit| accepted(VIRTIO_NET_F_GUEST_CSUM) && accepted(bit);
    Offloads {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN)
            && (has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN;

    fn header(flags: u8, gso_type: u8, gso_size: u16, csum: (u16, u16)) -> Header {
        Header {
            flags,
            gso_type,
            gso_size,
            csum_start: csum.0,
            csum_offset: csum.1,
        }
    }

    #[test]
    fn every_field_has_the_place_the_specification_gives_it() {
        let bytes: [u8; 12] = std::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        assert_eq!(
            Header::decode(&bytes),
            header(1, 2, 0x0605, (0x0807, 0x0a09))
        );
    }

    #[test]
    fn what_was_negotiated_is_sent_and_nothing_else() {
        let tcp = (34, 16);
        for (header, needs) in [
            (header(0, 0, 0, (0, 0)), 0),
            (header(1, 0, 0, tcp), 1 << VIRTIO_NET_F_CSUM),
            (
                header(1, 1, 1448, tcp),
                1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4,
            ),
            (
                header(1, 4, 1428, tcp),
                1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO6,
            ),
            (
                header(1, 0x81, 1448, tcp),
                1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_ECN,
            ),
        ] {
            assert_eq!(header.check(needs, 1514), Ok(()));
            for bit in (0..64).map(|bit| 1 << bit).filter(|bit| needs & bit != 0) {
                let refused = header.check(needs & !bit, 1514);
                assert_eq!(
                    refused,
                    Err(Refusal::Feature),
                    "{header:?} without {bit:#x}"
                );
            }
        }
    }

    #[test]
    fn unknown_flags_and_types_are_refused() {
        for flags in 2..=255 {
            let refused = header(flags, 0, 0, (0, 0)).check(ALL, 1514);
            assert_eq!(refused, Err(Refusal::Feature), "{flags}");
        }
        for kind in (0..=255).filter(|kind| ![0, 1, 4, 0x81, 0x84].contains(kind)) {
            let refused = header(1, kind, 1448, (34, 16)).check(ALL, 1514);
            assert_eq!(refused, Err(Refusal::Feature), "{kind}");
        }
    }

    #[test]
    fn a_checksum_outside_of_the_frame_is_refused() {
        let end = |len| header(1, 0, 0, (34, 16)).check(ALL, len);
        assert_eq!(end(52), Ok(()));
        assert_eq!(end(51), Err(Refusal::Checksum));
        let far = header(1, 0, 0, (u16::MAX, u16::MAX)).check(ALL, 65550);
        assert_eq!(far, Err(Refusal::Checksum));
    }

    #[test]
    fn segments_need_a_size_and_a_checksum() {
        let no_size = header(1, 1, 0, (34, 16)).check(ALL, 1514);
        assert_eq!(no_size, Err(Refusal::Segments));
        let no_checksum = header(0, 1, 1448, (34, 16)).check(ALL, 1514);
        assert_eq!(no_checksum, Err(Refusal::Segments));
    }

    #[test]
    fn without_checksums_the_driver_gets_no_offload() {
        assert_eq!(
            offloads(1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_ECN),
            Offloads::default()
        );
        let some = offloads(
            1 << VIRTIO_NET_F_GUEST_CSUM
                | 1 << VIRTIO_NET_F_GUEST_TSO6
                | 1 << VIRTIO_NET_F_GUEST_ECN,
        );
        assert!(some.checksum && !some.tso4 && some.tso6 && some.ecn);
        assert!(!offloads(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN).ecn);
    }
}
