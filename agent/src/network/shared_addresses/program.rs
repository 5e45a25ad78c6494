//! The programs. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_protocol::host_addresses::{
    LOOPBACK, LOOPBACK_V6, PREFIX_V6, RESOLVER, RESOLVER_THERE, SHARED, SHARED_V6,
};

use crate::bpf::{
    ADD_64, AND, Assembler, CALL, EXIT, Instruction, JUMP, JUMP_EQUAL, JUMP_EQUAL_32,
    JUMP_NOT_EQUAL_32, LOAD_DOUBLE, LOAD_WORD, Label, MOVE, MOVE_REGISTER, MOVE_REGISTER_64,
    OR_REGISTER, STORE_HALF, STORE_WORD, TO_NETWORK,
};
use crate::socket_programs::{
    CONTEXT, Hook, IP4, IP6, PORT, PROTOCOL, RESULT, SCRATCH, on_network, only_in, word,
};

/// Which sockets a program is asked for. Those of IPv6 have IPv4 addresses mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

/// What a program is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    /// Where a socket connects to.
    Connect,
    /// Where a datagram goes.
    Send,
    /// Where a datagram, or a connection, is said to come from.
    From,
}

/// Where they are asked.
pub(super) const HOOKS: [(Hook, Family, Moment); 8] = [
    (10, Family::V4, Moment::Connect), // CGROUP_INET4_CONNECT
    (11, Family::V6, Moment::Connect), // CGROUP_INET6_CONNECT
    (14, Family::V4, Moment::Send),    // CGROUP_UDP4_SENDMSG
    (15, Family::V6, Moment::Send),    // CGROUP_UDP6_SENDMSG
    (19, Family::V4, Moment::From),    // CGROUP_UDP4_RECVMSG
    (20, Family::V6, Moment::From),    // CGROUP_UDP6_RECVMSG
    (29, Family::V4, Moment::From),    // CGROUP_INET4_GETPEERNAME
    (30, Family::V6, Moment::From),    // CGROUP_INET6_GETPEERNAME
];

/// Of `enum bpf_func_id`.
const SK_LOOKUP_TCP: i32 = 84;
const SK_LOOKUP_UDP: i32 = 85;
const SK_RELEASE: i32 = 86;

/// Further places in `struct bpf_sock_addr`.
const SOURCE_IP4: i16 = 40;
const SOURCE_IP6: i16 = 44;
const SOCKET: i16 = 64;

/// Places in `struct bpf_sock`.
const SOCKETS_IP4: i16 = 24;
const SOCKETS_IP6: i16 = 28;
const SOCKETS_PORT: i16 = 44;

/// Places in `struct bpf_sock_tuple`, which ends at the frame's end, less four bytes: source and
/// destination, then their ports.
const TUPLE4: (i16, i16) = (-16, -12);
const TUPLE6: (i16, i16) = (-40, -24);
const TUPLE_PORTS: (i16, i16) = (-8, -6);
const TUPLE_END: i16 = -4;

/// Registers. A call takes the second to the sixth.
const WORDS: [u8; 4] = [2, 3, 4, 8];
/// The (last) word of the address that stands for the host's.
const STAND_IN: u8 = 7;
/// The (last) word of the address that was asked for.
const ASKED: u8 = 8;
/// The word of the address that it would come from.
const SOURCE: u8 = 9;
const FRAME: u8 = 10;

const DNS: u16 = 53;

/// Addresses that are compared with.
const MAX_ADDRESSES: usize = 32;

/// A network whose addresses are the host's, too.
#[derive(Debug)]
pub(super) struct Network {
    /// By which its namespace is known (`SO_NETNS_COOKIE`).
    pub(super) cookie: u64,
    /// What its interfaces have.
    v4: Vec<Ipv4Addr>,
    /// The same, but for link-local ones, which mean nothing without their link.
    v6: Vec<Ipv6Addr>,
    /// Whether there is a way to the address that stands for ::1.
    has_v6: bool,
}

impl Network {
    /// One whose interfaces have these addresses.
    pub(super) fn new(cookie: u64, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut has_v6 = false;
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => {
                    has_v6 = true;
                    if !address.is_unicast_link_local() {
                        v6.push(address);
                    }
                }
            }
        }
        Self {
            cookie,
            v4,
            v6,
            has_v6,
        }
    }

    /// The program for a hook.
    pub(super) fn program(&self, family: Family, moment: Moment) -> Vec<Instruction> {
        let mut program = Assembler::default();
        let end = program.label();
        program.put(MOVE_REGISTER_64, CONTEXT, 1, 0, 0);
        match family {
            Family::V4 => {
                program.put(LOAD_WORD, ASKED, CONTEXT, IP4, 0);
                self.v4(&mut program, IP4, moment, end);
            }
            Family::V6 => {
                let six = program.label();
                for (register, place) in WORDS.into_iter().zip((IP6..).step_by(4)) {
                    program.put(LOAD_WORD, register, CONTEXT, place, 0);
                }
                program.put(MOVE_REGISTER, SCRATCH, WORDS[0], 0, 0);
                program.put(OR_REGISTER, SCRATCH, WORDS[1], 0, 0);
                program.jump(JUMP_NOT_EQUAL_32, SCRATCH, 0, 0, six);
                let mapped = word([0, 0, 0xff, 0xff]);
                program.jump(JUMP_NOT_EQUAL_32, WORDS[2], 0, mapped, six);
                self.v4(&mut program, IP6 + 12, moment, end);
                program.place(six);
                if self.has_v6 {
                    self.v6(&mut program, moment, end);
                }
            }
        }
        program.place(end);
        // All is allowed.
        program.put(MOVE, RESULT, 0, 0, 1);
        program.put(EXIT, 0, 0, 0, 0);
        program.finish()
    }

    /// What is done with the address of IPv4 in `ASKED`, whose place is given.
    fn v4(&self, program: &mut Assembler, place: i16, moment: Moment, end: Label) {
        match moment {
            Moment::Connect | Moment::Send => self.redirect_v4(program, place, moment, end),
            Moment::From => self.undo_v4(program, place, end),
        }
    }

    fn redirect_v4(&self, program: &mut Assembler, place: i16, moment: Moment, end: Label) {
        let [loopback, shared, chosen] = [(); 3].map(|()| program.label());
        let not_any = program.label();
        // 0.0.0.0 is this host, so as good as 127.0.0.1.
        program.jump(JUMP_NOT_EQUAL_32, ASKED, 0, 0, not_any);
        program.put(MOVE, ASKED, 0, 0, v4(Ipv4Addr::LOCALHOST));
        program.place(not_any);
        program.put(MOVE_REGISTER, SCRATCH, ASKED, 0, 0);
        program.put(AND, SCRATCH, 0, 0, word([0xff, 0, 0, 0]));
        program.jump(JUMP_EQUAL_32, SCRATCH, 0, word([127, 0, 0, 0]), loopback);
        for &address in &self.v4 {
            program.jump(JUMP_EQUAL_32, ASKED, 0, v4(address), shared);
        }
        program.jump(JUMP, 0, 0, 0, end);

        // The kernel refuses what cannot be reached.
        if !self.v4.is_empty() {
            program.place(shared);
            program.put(MOVE, STAND_IN, 0, 0, v4(SHARED));
            program.put(MOVE_REGISTER, SOURCE, ASKED, 0, 0);
            program.jump(JUMP, 0, 0, 0, chosen);
        }

        program.place(loopback);
        program.put(MOVE, STAND_IN, 0, 0, v4(LOOPBACK));
        program.put(MOVE, SOURCE, 0, 0, v4(Ipv4Addr::LOCALHOST));
        program.jump(JUMP_NOT_EQUAL_32, ASKED, 0, v4(RESOLVER_THERE), chosen);
        program.put(LOAD_WORD, SCRATCH, CONTEXT, PORT, 0);
        program.jump(JUMP_NOT_EQUAL_32, SCRATCH, 0, on_network(DNS), chosen);
        program.put(MOVE, STAND_IN, 0, 0, v4(RESOLVER));

        program.place(chosen);
        self.only_here(program, end);
        // A socket that has a source already keeps it.
        program.put(LOAD_DOUBLE, 3, CONTEXT, SOCKET, 0);
        self.source_v4(program, 3, SOCKETS_IP4);
        // Mapped ones stand elsewhere; those that are given with a datagram are rare.
        if matches!(moment, Moment::Send) && place == IP4 {
            self.source_v4(program, CONTEXT, SOURCE_IP4);
        }
        program.put(STORE_WORD, FRAME, SOURCE, TUPLE4.0, 0);
        program.put(STORE_WORD, FRAME, ASKED, TUPLE4.1, 0);
        let redirect = program.label();
        nobody_listens(program, TUPLE4.0, redirect, end);
        program.place(redirect);
        program.put(STORE_WORD, CONTEXT, STAND_IN, place, 0);
        program.jump(JUMP, 0, 0, 0, end);
    }

    /// What is in memory there is the source, unless that is nothing.
    fn source_v4(&self, program: &mut Assembler, base: u8, place: i16) {
        let none = program.label();
        program.put(LOAD_WORD, SCRATCH, base, place, 0);
        program.jump(JUMP_EQUAL_32, SCRATCH, 0, 0, none);
        program.put(MOVE_REGISTER, SOURCE, SCRATCH, 0, 0);
        program.place(none);
    }

    fn undo_v4(&self, program: &mut Assembler, place: i16, end: Label) {
        let asked = [
            (LOOPBACK, Some(Ipv4Addr::LOCALHOST)),
            (RESOLVER, Some(RESOLVER_THERE)),
            (SHARED, self.v4.first().copied()),
        ];
        for (stand_in, real) in asked {
            let Some(real) = real else { continue };
            let other = program.label();
            program.jump(JUMP_NOT_EQUAL_32, ASKED, 0, v4(stand_in), other);
            self.only_here(program, end);
            program.put(MOVE, SCRATCH, 0, 0, v4(real));
            program.put(STORE_WORD, CONTEXT, SCRATCH, place, 0);
            program.jump(JUMP, 0, 0, 0, end);
            program.place(other);
        }
        program.jump(JUMP, 0, 0, 0, end);
    }

    /// What is done with the address of IPv6 in `WORDS`.
    fn v6(&self, program: &mut Assembler, moment: Moment, end: Label) {
        match moment {
            Moment::Connect | Moment::Send => self.redirect_v6(program, moment, end),
            Moment::From => self.undo_v6(program, end),
        }
    }

    fn redirect_v6(&self, program: &mut Assembler, moment: Moment, end: Label) {
        let [loopback, shared, chosen] = [(); 3].map(|()| program.label());
        for &address in &self.v6 {
            let other = program.label();
            unless_is(program, address, other);
            program.jump(JUMP, 0, 0, 0, shared);
            program.place(other);
        }
        program.put(MOVE_REGISTER, SCRATCH, WORDS[0], 0, 0);
        program.put(OR_REGISTER, SCRATCH, WORDS[1], 0, 0);
        program.put(OR_REGISTER, SCRATCH, WORDS[2], 0, 0);
        program.jump(JUMP_NOT_EQUAL_32, SCRATCH, 0, 0, end);
        program.jump(JUMP_EQUAL_32, ASKED, 0, 0, loopback);
        program.jump(JUMP_NOT_EQUAL_32, ASKED, 0, word([0, 0, 0, 1]), end);

        program.place(loopback);
        program.put(MOVE, ASKED, 0, 0, word([0, 0, 0, 1]));
        program.put(MOVE, STAND_IN, 0, 0, v6(LOOPBACK_V6)[3]);

        if !self.v6.is_empty() {
            program.jump(JUMP, 0, 0, 0, chosen);
            program.place(shared);
            program.put(MOVE, STAND_IN, 0, 0, v6(SHARED_V6)[3]);
        }

        program.place(chosen);
        for (number, register) in (0..).zip(WORDS) {
            // From there unless it is known better.
            program.put(STORE_WORD, FRAME, register, TUPLE6.0 + 4 * number, 0);
            program.put(STORE_WORD, FRAME, register, TUPLE6.1 + 4 * number, 0);
        }
        self.only_here(program, end);
        program.put(LOAD_DOUBLE, 3, CONTEXT, SOCKET, 0);
        self.source_v6(program, 3, SOCKETS_IP6);
        if matches!(moment, Moment::Send) {
            self.source_v6(program, CONTEXT, SOURCE_IP6);
        }
        let redirect = program.label();
        nobody_listens(program, TUPLE6.0, redirect, end);
        program.place(redirect);
        let prefix = v6(PREFIX_V6.0);
        for (number, &word) in (0..).zip(&prefix[..3]) {
            program.put(MOVE, SCRATCH, 0, 0, word);
            program.put(STORE_WORD, CONTEXT, SCRATCH, IP6 + 4 * number, 0);
        }
        program.put(STORE_WORD, CONTEXT, STAND_IN, IP6 + 12, 0);
        program.jump(JUMP, 0, 0, 0, end);
    }

    /// As of IPv4. No address that anything comes from ends with four zeros.
    fn source_v6(&self, program: &mut Assembler, base: u8, place: i16) {
        let none = program.label();
        program.put(LOAD_WORD, SCRATCH, base, place + 12, 0);
        program.jump(JUMP_EQUAL_32, SCRATCH, 0, 0, none);
        for number in 0..4 {
            program.put(LOAD_WORD, SCRATCH, base, place + 4 * number, 0);
            program.put(STORE_WORD, FRAME, SCRATCH, TUPLE6.0 + 4 * number, 0);
        }
        program.place(none);
    }

    fn undo_v6(&self, program: &mut Assembler, end: Label) {
        let asked = [
            (LOOPBACK_V6, Some(Ipv6Addr::LOCALHOST)),
            (SHARED_V6, self.v6.first().copied()),
        ];
        for (stand_in, real) in asked {
            let Some(real) = real else { continue };
            let other = program.label();
            unless_is(program, stand_in, other);
            self.only_here(program, end);
            for (number, word) in (0..).zip(v6(real)) {
                program.put(MOVE, SCRATCH, 0, 0, word);
                program.put(STORE_WORD, CONTEXT, SCRATCH, IP6 + 4 * number, 0);
            }
            program.jump(JUMP, 0, 0, 0, end);
            program.place(other);
        }
    }

    /// Goes on in this network alone: what is made within a container has a loopback of its own.
    fn only_here(&self, program: &mut Assembler, end: Label) {
        only_in(program, self.cookie, end);
    }
}

/// Goes on at `nobody` if no socket of the network would get what is sent, by the tuple whose addresses
/// are on the frame from `start`; otherwise at `end`.
fn nobody_listens(program: &mut Assembler, start: i16, nobody: Label, end: Label) {
    let [tcp, looked] = [(); 2].map(|()| program.label());
    program.put(LOAD_DOUBLE, 3, CONTEXT, SOCKET, 0);
    program.put(LOAD_WORD, SCRATCH, 3, SOCKETS_PORT, 0);
    program.put(TO_NETWORK, SCRATCH, 0, 0, 16);
    program.put(STORE_HALF, FRAME, SCRATCH, TUPLE_PORTS.0, 0);
    program.put(LOAD_WORD, SCRATCH, CONTEXT, PORT, 0);
    program.put(STORE_HALF, FRAME, SCRATCH, TUPLE_PORTS.1, 0);
    program.put(LOAD_WORD, RESULT, CONTEXT, PROTOCOL, 0);
    program.put(MOVE_REGISTER_64, 1, CONTEXT, 0, 0);
    program.put(MOVE_REGISTER_64, 2, FRAME, 0, 0);
    program.put(ADD_64, 2, 0, 0, start.into());
    program.put(MOVE, 3, 0, 0, (TUPLE_END - start).into());
    // The socket's own namespace (`BPF_F_CURRENT_NETNS`).
    program.put(MOVE, 4, 0, 0, -1);
    program.put(MOVE, 5, 0, 0, 0);
    program.jump(JUMP_EQUAL_32, RESULT, 0, libc::IPPROTO_TCP, tcp);
    program.jump(JUMP_NOT_EQUAL_32, RESULT, 0, libc::IPPROTO_UDP, end);
    program.put(CALL, 0, 0, 0, SK_LOOKUP_UDP);
    program.jump(JUMP, 0, 0, 0, looked);
    program.place(tcp);
    program.put(CALL, 0, 0, 0, SK_LOOKUP_TCP);
    program.place(looked);
    program.jump(JUMP_EQUAL, RESULT, 0, 0, nobody);
    program.put(MOVE_REGISTER_64, 1, RESULT, 0, 0);
    program.put(CALL, 0, 0, 0, SK_RELEASE);
    program.jump(JUMP, 0, 0, 0, end);
}

/// Goes on at `other` unless `WORDS` are this address.
fn unless_is(program: &mut Assembler, address: Ipv6Addr, other: Label) {
    for (register, word) in WORDS.into_iter().zip(v6(address)) {
        program.jump(JUMP_NOT_EQUAL_32, register, 0, word, other);
    }
}

/// In memory as on the network.
fn v4(address: Ipv4Addr) -> i32 {
    word(address.octets())
}

fn v6(address: Ipv6Addr) -> [i32; 4] {
    let octets = address.octets();
    let (words, _) = octets.as_chunks::<4>();
    [0, 1, 2, 3].map(|number| word(words[number]))
}
