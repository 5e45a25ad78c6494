//! What is sent to 127.0.0.11:53 goes to the ports that the agent listens on: BPF programs that the
//! kernel asks when a container connects a socket or sends a datagram, and that undo it in the
//! addresses that it is shown (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
//!
//! Port 53 itself stays free: a container may listen at 0.0.0.0:53, as it may with the engine's own
//! resolver. Only one network namespace is meant: what is made within a container, by another
//! engine, has a 127.0.0.11 of its own.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use crate::bpf::{
    CALL, EXIT, Instruction, JUMP_NOT_EQUAL_32, JUMP_NOT_EQUAL_REGISTER, LOAD_CONSTANT, LOAD_WORD,
    MOVE, MOVE_REGISTER_64, STORE_WORD, instruction,
};
use crate::sys::{self, ProgramKind};

/// The cgroup above all containers'.
const CONTAINERS: &str = "/sys/fs/cgroup/hull";

/// Where the engine's resolver is.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;

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

/// Attach types of `enum bpf_attach_type` (linux/bpf.h).
const HOOKS: [(u32, Family, Direction); 8] = [
    (10, Family::V4, Direction::To),       // CGROUP_INET4_CONNECT
    (11, Family::Mapped, Direction::To),   // CGROUP_INET6_CONNECT
    (14, Family::V4, Direction::To),       // CGROUP_UDP4_SENDMSG
    (15, Family::Mapped, Direction::To),   // CGROUP_UDP6_SENDMSG
    (19, Family::V4, Direction::From),     // CGROUP_UDP4_RECVMSG
    (20, Family::Mapped, Direction::From), // CGROUP_UDP6_RECVMSG
    (29, Family::V4, Direction::From),     // CGROUP_INET4_GETPEERNAME
    (30, Family::Mapped, Direction::From), // CGROUP_INET6_GETPEERNAME
];

/// `bpf_get_netns_cookie` of `enum bpf_func_id`.
const GET_NETNS_COOKIE: i32 = 122;

/// Places in `struct bpf_sock_addr`.
const IP4: u16 = 4;
const IP6: u16 = 8;
const USER_PORT: u16 = 24;
const PROTOCOL: u16 = 36;

/// The programs of one network, which are asked as long as this is there.
pub(super) struct Redirect {
    _links: Vec<OwnedFd>,
}

impl Redirect {
    /// Redirects what containers send in the network namespace of that number (`SO_NETNS_COOKIE`), from now
    /// on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn install(namespace: u64, ports: Ports) -> io::Result<Self> {
        let cgroup = File::open(CONTAINERS)?;
        let links = HOOKS.map(|(hook, family, direction)| {
            let hook = ProgramKind::SocketAddress(hook);
            let program = sys::load_program(hook, &program(namespace, ports, family, direction))?;
            sys::link_program(cgroup.as_fd(), program.as_fd(), hook)
        });
        Ok(Self {
            _links: links.into_iter().collect::<io::Result<_>>()?,
        })
    }
}

fn program(namespace: u64, ports: Ports, family: Family, direction: Direction) -> Vec<Instruction> {
    const RESULT: u8 = 0;
    const ARGUMENT: u8 = 1;
    const SCRATCH: u8 = 2;
    const KIND: u8 = 3;
    const CONTEXT: u8 = 6;
    /// An instruction that leaves the program for its end; where that is comes later.
    enum Step {
        Do(Instruction),
        LeaveIf(u8, u8, u8, i32),
    }
    use Step::{Do, LeaveIf};

    let load = |to, place| Do(instruction(LOAD_WORD, to, CONTEXT, place, 0));
    let mut steps = vec![Do(instruction(MOVE_REGISTER_64, CONTEXT, ARGUMENT, 0, 0))];
    let words: Vec<(u16, [u8; 4])> = match family {
        Family::V4 => vec![(IP4, ADDRESS.octets())],
        Family::Mapped => {
            let octets = ADDRESS.to_ipv6_mapped().octets();
            let (words, _) = octets.as_chunks::<4>();
            (IP6..).step_by(4).zip(words.iter().copied()).collect()
        }
    };
    for (place, octets) in words {
        // In memory as on the network.
        let word = i32::from_ne_bytes(octets);
        steps.push(load(SCRATCH, place));
        steps.push(LeaveIf(JUMP_NOT_EQUAL_32, SCRATCH, 0, word));
    }
    let [n0, n1, n2, n3, n4, n5, n6, n7] = namespace.to_le_bytes();
    let low = i32::from_le_bytes([n0, n1, n2, n3]);
    let high = i32::from_le_bytes([n4, n5, n6, n7]);
    steps.extend([
        Do(instruction(MOVE_REGISTER_64, ARGUMENT, CONTEXT, 0, 0)),
        Do(instruction(CALL, 0, 0, 0, GET_NETNS_COOKIE)),
        Do(instruction(LOAD_CONSTANT, SCRATCH, 0, 0, low)),
        Do(instruction(0, 0, 0, 0, high)),
        LeaveIf(JUMP_NOT_EQUAL_REGISTER, RESULT, SCRATCH, 0),
        load(KIND, PROTOCOL),
        load(SCRATCH, USER_PORT),
    ]);
    for (protocol, port) in [
        (libc::IPPROTO_UDP, ports.udp),
        (libc::IPPROTO_TCP, ports.tcp),
    ] {
        let (old, new) = match direction {
            Direction::To => (PORT, port),
            Direction::From => (port, PORT),
        };
        let on_network = |port: u16| i32::from(port.to_be());
        steps.extend([
            // Over the three that follow.
            Do(instruction(JUMP_NOT_EQUAL_32, KIND, 0, 3, protocol)),
            LeaveIf(JUMP_NOT_EQUAL_32, SCRATCH, 0, on_network(old)),
            Do(instruction(MOVE, SCRATCH, 0, 0, on_network(new))),
            Do(instruction(STORE_WORD, CONTEXT, SCRATCH, USER_PORT, 0)),
        ]);
    }
    let end = steps.len();
    let place = |(index, step)| match step {
        Do(instruction) => instruction,
        LeaveIf(operation, to, from, value) => {
            let over = u16::try_from(end - index - 1).expect("a program of some forty steps");
            instruction(operation, to, from, over, value)
        }
    };
    let mut program: Vec<Instruction> = steps.into_iter().enumerate().map(place).collect();
    // All is allowed.
    program.push(instruction(MOVE, RESULT, 0, 0, 1));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Family::V4 => usize::from(IP4),
            Family::Mapped => usize::from(IP6),
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
