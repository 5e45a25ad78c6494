//! What the driver asks for and is answered (virtio 1.3 §5.15.6). Pure.

use std::ops::Range;

use super::blocks::State;

/// Bytes of a block: what is plugged and unplugged at once. A large page of x86_64 and of aarch64, so
/// that giving blocks back splits none of the host's.
pub(super) const BLOCK: u64 = 2 << 20;

/// Bytes of `struct virtio_mem_req`.
pub(super) const REQUEST_LEN: usize = 24;
/// Bytes of `struct virtio_mem_resp`.
pub(super) const RESPONSE_LEN: u32 = 10;

const VIRTIO_MEM_REQ_PLUG: u16 = 0;
const VIRTIO_MEM_REQ_UNPLUG: u16 = 1;
const VIRTIO_MEM_REQ_UNPLUG_ALL: u16 = 2;
const VIRTIO_MEM_REQ_STATE: u16 = 3;

const VIRTIO_MEM_RESP_ACK: u16 = 0;
const VIRTIO_MEM_RESP_NACK: u16 = 1;
const VIRTIO_MEM_RESP_ERROR: u16 = 3;

const VIRTIO_MEM_STATE_PLUGGED: u16 = 0;
const VIRTIO_MEM_STATE_UNPLUGGED: u16 = 1;
const VIRTIO_MEM_STATE_MIXED: u16 = 2;

/// A request, in numbers of blocks from the region's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Range<usize>),
    Unplug(Range<usize>),
    UnplugAll,
    State(Range<usize>),
    /// Of no kind, or of blocks that are not in the region.
    Wrong,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Response {
    Ack,
    State(State),
    /// Not now, or not so much.
    Nack,
    /// The driver is wrong about what there is.
    Error,
}

impl Request {
    /// Decodes a request to a device whose region begins at `start` and has `count` blocks that may be
    /// used.
    pub(super) fn decode(bytes: &[u8; REQUEST_LEN], start: u64, count: usize) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = *bytes;
        let blocks = || {
            let offset = u64::from_le_bytes([a, b, c, d, e, f, g, h]).checked_sub(start)?;
            if !offset.is_multiple_of(BLOCK) {
                return None;
            }
            let first = usize::try_from(offset / BLOCK).ok()?;
            let end = first.checked_add(half(16).into())?;
            (first < end && end <= count).then_some(first..end)
        };
        let of = |kind: fn(Range<usize>) -> Self| blocks().map_or(Self::Wrong, kind);
        match half(0) {
            VIRTIO_MEM_REQ_PLUG => of(Self::Plug),
            VIRTIO_MEM_REQ_UNPLUG => of(Self::Unplug),
            VIRTIO_MEM_REQ_UNPLUG_ALL => Self::UnplugAll,
            VIRTIO_MEM_REQ_STATE => of(Self::State),
            _ => Self::Wrong,
        }
    }
}

impl Response {
    pub(super) fn encode(self) -> [u8; RESPONSE_LEN as usize] {
        let (kind, state) = match self {
            Self::Ack => (VIRTIO_MEM_RESP_ACK, 0),
            Self::State(State::Plugged) => (VIRTIO_MEM_RESP_ACK, VIRTIO_MEM_STATE_PLUGGED),
            Self::State(State::Unplugged) => (VIRTIO_MEM_RESP_ACK, VIRTIO_MEM_STATE_UNPLUGGED),
            Self::State(State::Mixed) => (VIRTIO_MEM_RESP_ACK, VIRTIO_MEM_STATE_MIXED),
            Self::Nack => (VIRTIO_MEM_RESP_NACK, 0),
            Self::Error => (VIRTIO_MEM_RESP_ERROR, 0),
        };
        let mut bytes = [0; RESPONSE_LEN as usize];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1 << 32;

    pub(in super::super) fn bytes(kind: u16, address: u64, blocks: u16) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        bytes
    }

    #[test]
    fn the_four_requests_are_told_apart() {
        for (kind, expected) in [
            (0, Request::Plug(3..5)),
            (1, Request::Unplug(3..5)),
            (2, Request::UnplugAll),
            (3, Request::State(3..5)),
            (4, Request::Wrong),
            (u16::MAX, Request::Wrong),
        ] {
            let request = bytes(kind, START + 3 * BLOCK, 2);
            assert_eq!(Request::decode(&request, START, 5), expected);
        }
    }

    /// virtio 1.3 §5.15.6.3.2, §5.15.6.4.2, §5.15.6.6.2: the device rejects blocks outside of the usable
    /// region, and addresses that are no block's.
    #[test]
    fn blocks_that_are_not_there_are_refused() {
        for (address, blocks) in [
            (START - BLOCK, 1),
            (START + 5 * BLOCK, 1),
            (START + 4 * BLOCK, 2),
            (START + 1, 1),
            (START + BLOCK / 2, 1),
            (START, 0),
            (0, 1),
            (u64::MAX / BLOCK * BLOCK, u16::MAX),
            (u64::MAX, 1),
        ] {
            let request = bytes(0, address, blocks);
            let decoded = Request::decode(&request, START, 5);
            assert_eq!(decoded, Request::Wrong, "{address:#x} {blocks}");
        }
    }

    #[test]
    fn an_answer_has_its_kind_and_its_state() {
        for (response, kind, state) in [
            (Response::Ack, 0, 0),
            (Response::State(State::Plugged), 0, 0),
            (Response::State(State::Unplugged), 0, 1),
            (Response::State(State::Mixed), 0, 2),
            (Response::Nack, 1, 0),
            (Response::Error, 3, 0),
        ] {
            assert_eq!(response.encode(), [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_lies_in_the_region(
            request: [u8; REQUEST_LEN], start in 0..u64::MAX, count in 0..1000_usize,
        ) {
            match Request::decode(&request, start, count) {
                Request::Plug(range) | Request::Unplug(range) | Request::State(range) => {
                    prop_assert!(range.start < range.end && range.end <= count);
                }
                Request::UnplugAll | Request::Wrong => {}
            }
        }
    }
}
