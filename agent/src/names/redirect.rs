//! What is sent to 127.0.0.11:53 goes to the ports that the agent listens on: BPF programs that the
//! kernel asks when a container connects a socket or sends a datagram, and that undo it in the
//! addresses that it is shown (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
//!
//! Port 53 itself stays free: a container may listen at 0.0.0.0:53, as it may with the engine's own
//! resolver. Only one network namespace is meant: what is made within a container, by another
//! engine, has a 127.0.0.11 of its own.

use std::io;
use std::net::Ipv4Addr;

use crate::bpf::{
    Assembler, EXIT, Instruction, JUMP, JUMP_NOT_EQUAL_32, LOAD_WORD, MOVE, MOVE_REGISTER_64,
    STORE_WORD,
};
use crate::socket_programs::{
    CONTEXT, Hook, IP4, IP6, PORT, PROTOCOL, RESULT, SCRATCH, SocketPrograms, on_network, only_in,
    word,
};

/// Where the engine's resolver is.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const DNS: u16 = 53;

/// The ports that stand for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) udp: u16,
    pub(super) tcp: u16,
}

/// Which addresses a program sees: IPv6 sockets have IPv4 addresses mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy)]
enum Family {
    V4,
    Mapped,
}

/// Whether it sees where something goes, or where it comes from.
#[derive(Clone, Copy)]
enum Direction {
    To,
    From,
}

/// Where they are asked.
const HOOKS: [(Hook, Family, Direction); 8] = [
    (10, Family::V4, Direction::To),       // CGROUP_INET4_CONNECT
    (11, Family::Mapped, Direction::To),   // CGROUP_INET6_CONNECT
    (14, Family::V4, Direction::To),       // CGROUP_UDP4_SENDMSG
    (15, Family::Mapped, Direction::To),   // CGROUP_UDP6_SENDMSG
    (19, Family::V4, Direction::From),     // CGROUP_UDP4_RECVMSG
    (20, Family::Mapped, Direction::From), // CGROUP_UDP6_RECVMSG
    (29, Family::V4, Direction::From),     // CGROUP_INET4_GETPEERNAME
    (30, Family::Mapped, Direction::From), // CGROUP_INET6_GETPEERNAME
];

/// Redirects what containers send in the network namespace of that number (`SO_NETNS_COOKIE`), as long
/// as the programs are there.
///
/// # Errors
/// What the kernel says.
pub(super) fn install(namespace: u64, ports: Ports) -> io::Result<SocketPrograms> {
    SocketPrograms::install(
        HOOKS.map(|(hook, family, direction)| (hook, program(namespace, ports, family, direction))),
    )
}

fn program(namespace: u64, ports: Ports, family: Family, direction: Direction) -> Vec<Instruction> {
    /// A register that is free.
    const KIND: u8 = 3;
    let mut program = Assembler::default();
    let end = program.label();
    program.put(MOVE_REGISTER_64, CONTEXT, 1, 0, 0);
    let (start, octets) = match family {
        Family::V4 => (IP4, ADDRESS.octets().to_vec()),
        Family::Mapped => (IP6, ADDRESS.to_ipv6_mapped().octets().to_vec()),
    };
    let (words, _) = octets.as_chunks();
    for (place, &octets) in (start..).step_by(4).zip(words) {
        program.put(LOAD_WORD, SCRATCH, CONTEXT, place, 0);
        program.jump(JUMP_NOT_EQUAL_32, SCRATCH, 0, word(octets), end);
    }
    only_in(&mut program, namespace, end);
    program.put(LOAD_WORD, KIND, CONTEXT, PROTOCOL, 0);
    program.put(LOAD_WORD, SCRATCH, CONTEXT, PORT, 0);
    for (protocol, port) in [
        (libc::IPPROTO_UDP, ports.udp),
        (libc::IPPROTO_TCP, ports.tcp),
    ] {
        let (old, new) = match direction {
            Direction::To => (DNS, port),
            Direction::From => (port, DNS),
        };
        let other = program.label();
        program.jump(JUMP_NOT_EQUAL_32, KIND, 0, protocol, other);
        program.jump(JUMP_NOT_EQUAL_32, SCRATCH, 0, on_network(old), end);
        program.put(MOVE, SCRATCH, 0, 0, on_network(new));
        program.put(STORE_WORD, CONTEXT, SCRATCH, PORT, 0);
        program.jump(JUMP, 0, 0, 0, end);
        program.place(other);
    }
    program.place(end);
    // All is allowed.
    program.put(MOVE, RESULT, 0, 0, 1);
    program.put(EXIT, 0, 0, 0, 0);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{CALL, JUMP_NOT_EQUAL_REGISTER, LOAD_CONSTANT};

    const NAMESPACE: u64 = 0x1234_5678_9abc_def0;
    const PORTS: Ports = Ports {
        udp: 40_001,
        tcp: 40_002,
    };

    /// What the kernel would leave in `user_port`, as a port.
    fn ask(family: Family, direction: Direction, namespace: u64, to: (&[u8], i32, u16)) -> u16 {
        let (address, protocol, port) = to;
        let mut context = [0_u8; 40];
        let start = match family {
            Family::V4 => 4,
            Family::Mapped => 8,
        };
        context[start..start + address.len()].copy_from_slice(address);
        context[24..26].copy_from_slice(&port.to_be_bytes());
        context[36..40].copy_from_slice(&protocol.to_ne_bytes());
        let program = program(NAMESPACE, PORTS, family, direction);
        let mut registers = [0_u64; 8];
        let mut next = 0;
        loop {
            let [operation, places, o0, o1, v0, v1, v2, v3] = program[next].to_le_bytes();
            let (to, from) = (usize::from(places & 15), usize::from(places >> 4));
            let offset = usize::from(u16::from_le_bytes([o0, o1]));
            let value = u32::from_le_bytes([v0, v1, v2, v3]);
            next += 1;
            match operation {
                LOAD_WORD => {
                    let word = context[offset..offset + 4].try_into().unwrap();
                    registers[to] = u32::from_ne_bytes(word).into();
                }
                STORE_WORD => {
                    let word = u32::try_from(registers[from]).unwrap();
                    context[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
                }
                MOVE => registers[to] = value.into(),
                MOVE_REGISTER_64 => registers[to] = registers[from],
                LOAD_CONSTANT => {
                    registers[to] = (program[next] >> 32) << 32 | u64::from(value);
                    next += 1;
                }
                CALL => registers[0] = namespace,
                JUMP => next += offset,
                JUMP_NOT_EQUAL_32 if registers[to] & 0xffff_ffff != u64::from(value) => {
                    next += offset;
                }
                JUMP_NOT_EQUAL_REGISTER if registers[to] != registers[from] => next += offset,
                JUMP_NOT_EQUAL_32 | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => {
                    assert_eq!(registers[0], 1);
                    return u16::from_be_bytes([context[24], context[25]]);
                }
                other => panic!("operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_resolvers_port_and_no_other_is_redirected_there_and_back() {
        let (udp, tcp) = (libc::IPPROTO_UDP, libc::IPPROTO_TCP);
        let mapped = ADDRESS.to_ipv6_mapped().octets();
        for (family, address) in [
            (Family::V4, &ADDRESS.octets()[..]),
            (Family::Mapped, &mapped[..]),
        ] {
            let to = |to| ask(family, Direction::To, NAMESPACE, to);
            let from = |from| ask(family, Direction::From, NAMESPACE, from);
            assert_eq!(to((address, udp, 53)), PORTS.udp);
            assert_eq!(to((address, tcp, 53)), PORTS.tcp);
            assert_eq!(to((address, udp, 54)), 54);
            assert_eq!(from((address, udp, PORTS.udp)), 53);
            assert_eq!(from((address, tcp, PORTS.tcp)), 53);
            assert_eq!(from((address, tcp, PORTS.udp)), PORTS.udp);
            let elsewhere = ask(family, Direction::To, NAMESPACE + 1, (address, udp, 53));
            assert_eq!(elsewhere, 53);
        }
        assert_eq!(
            ask(
                Family::V4,
                Direction::To,
                NAMESPACE,
                (&[127, 0, 0, 1], udp, 53)
            ),
            53
        );
    }
}
