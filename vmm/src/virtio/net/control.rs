//! The control queue (virtio 1.3 §5.1.6.5), of whose commands there is one: how many pairs of queues the
//! driver uses (§5.1.6.5.6).
//!
//! Threat: a command of any class, number and length. One that is not this one, to the byte, is refused;
//! one without room for its answer breaks the queue.

use std::io::{Read, Write};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::memory::Ram;
use crate::virtio::queue::{Chain, QueueError, reader, writer};

/// Class, command, and its data.
const COMMAND_LEN: usize = 4;

/// The number of pairs that a command asks for, whatever it is; `None` for all others.
pub(super) fn decode(command: &[u8]) -> Option<u16> {
    match *command {
        [class, number, low, high]
            if u32::from(class) == VIRTIO_NET_CTRL_MQ
                && u32::from(number) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET =>
        {
            Some(u16::from_le_bytes([low, high]))
        }
        _ => None,
    }
}

/// Answers one command of queue `index`, which `set_pairs` carries out or refuses; returns the bytes
/// written.
pub(super) fn answer(
    index: usize,
    ram: &Ram,
    chain: &Chain<'_>,
    set_pairs: impl FnOnce(u16) -> bool,
) -> Result<u32, QueueError> {
    let broken = |what| QueueError::Chain { index, what };
    let mut source = reader(index, ram, chain)?;
    let mut command = [0; COMMAND_LEN + 1];
    let len = source.available_bytes().min(command.len());
    let command = command.get_mut(..len).unwrap_or_default();
    (source.read_exact(command)).map_err(|_| broken("command shorter than its descriptors"))?;
    let mut ack = writer(index, ram, chain)?;
    if ack.available_bytes() == 0 {
        return Err(broken("command without room for its answer"));
    }
    let answer = if decode(command).is_some_and(set_pairs) {
        VIRTIO_NET_OK
    } else {
        VIRTIO_NET_ERR
    };
    let answer = u8::try_from(answer).expect("both are a byte");
    (ack.write_all(&[answer])).map_err(|_| broken("answer outside of memory"))?;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_pairs_is_little_endian() {
        assert_eq!(decode(&[4, 0, 2, 0]), Some(2));
        assert_eq!(decode(&[4, 0, 0x34, 0x12]), Some(0x1234));
    }

    #[test]
    fn classes_commands_and_lengths_that_are_not_its_own_are_no_command() {
        for class in (0..=255).filter(|&class| class != 4) {
            assert_eq!(decode(&[class, 0, 2, 0]), None, "class {class}");
        }
        // RSS and hash reports among them.
        for number in 1..=255 {
            assert_eq!(decode(&[4, number, 2, 0]), None, "command {number}");
        }
        for command in [&[][..], &[4], &[4, 0], &[4, 0, 2], &[4, 0, 2, 0, 0]] {
            assert_eq!(decode(command), None, "{command:?}");
        }
    }
}
