use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::program::{Family, HOOKS, Moment, Network};
use crate::bpf::{
    ADD_64, AND, CALL, EXIT, Instruction, JUMP, JUMP_EQUAL, JUMP_EQUAL_32, JUMP_NOT_EQUAL_32,
    JUMP_NOT_EQUAL_REGISTER, LOAD_CONSTANT, LOAD_DOUBLE, LOAD_WORD, MOVE, MOVE_REGISTER,
    MOVE_REGISTER_64, OR_REGISTER, STORE_HALF, STORE_WORD, TO_NETWORK,
};

const COOKIE: u64 = 0x1234_5678_9abc_def0;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

/// Where a program finds what it is asked about, the socket, and the end of its frame.
const CONTEXT: usize = 0;
const SOCKET: usize = 128;
const FRAME: usize = 512;

/// A kernel that asks a program.
struct Kernel {
    memory: [u8; FRAME],
    namespace: u64,
    protocol: i32,
    /// The sockets of the container, and whom they take something from, if not from all.
    sockets: Vec<(i32, SocketAddr, Option<SocketAddr>)>,
    /// Sockets that have been found and not been let go.
    held: usize,
}

impl Kernel {
    fn asked(protocol: i32, address: SocketAddr) -> Self {
        let mut memory = [0; FRAME];
        memory[CONTEXT + 64..][..8].copy_from_slice(&(SOCKET as u64).to_le_bytes());
        memory[CONTEXT + 36..][..4].copy_from_slice(&protocol.to_le_bytes());
        memory[CONTEXT + 24..][..2].copy_from_slice(&address.port().to_be_bytes());
        let place = match address {
            SocketAddr::V4(_) => CONTEXT + 4,
            SocketAddr::V6(_) => CONTEXT + 8,
        };
        let octets = octets(address.ip());
        memory[place..place + octets.len()].copy_from_slice(&octets);
        Self {
            memory,
            namespace: COOKIE,
            protocol,
            sockets: Vec::new(),
            held: 0,
        }
    }

    fn with(mut self, protocol: i32, socket: &str) -> Self {
        let socket = (protocol, socket.parse().unwrap(), None);
        self.sockets.push(socket);
        self
    }

    /// The socket that sends.
    fn sent_by(mut self, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let octets = octets(address.ip());
        let place = SOCKET + if octets.len() == 4 { 24 } else { 28 };
        self.memory[place..place + octets.len()].copy_from_slice(&octets);
        self.memory[SOCKET + 44..][..2].copy_from_slice(&address.port().to_le_bytes());
        self
    }

    fn read(&self, range: Range<usize>) -> u64 {
        let mut word = [0; 8];
        word[..range.len()].copy_from_slice(&self.memory[range]);
        u64::from_le_bytes(word)
    }

    /// `bpf_sk_lookup_tcp` and `…_udp`.
    fn look_up(&mut self, protocol: i32, registers: &[u64; 11]) -> u64 {
        assert_eq!(protocol, self.protocol);
        assert_eq!((registers[4] as u32, registers[5]), (u32::MAX, 0));
        let start = registers[2] as usize;
        let tuple = &self.memory[start..start + registers[3] as usize];
        let (addresses, ports) = tuple.split_at(tuple.len() - 4);
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        let end = |octets: &[u8], port: &[u8]| {
            let ip = match <[u8; 4]>::try_from(octets) {
                Ok(octets) => IpAddr::from(octets),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()),
            };
            SocketAddr::new(ip, u16::from_be_bytes(port.try_into().unwrap()))
        };
        let (source, destination) = (end(source, &ports[..2]), end(destination, &ports[2..]));
        let found = self.sockets.iter().any(|&(kind, socket, peer)| {
            let ip = socket.ip() == destination.ip() || socket.ip().is_unspecified();
            let port = socket.port() == destination.port();
            kind == protocol && ip && port && peer.is_none_or(|peer| peer == source)
        });
        self.held += usize::from(found);
        u64::from(found) * 0xffff_8880
    }

    /// Runs a program; returns the address that it leaves.
    fn run(mut self, program: &[Instruction], six: bool) -> IpAddr {
        let mut registers = [0_u64; 11];
        registers[1] = CONTEXT as u64;
        registers[10] = FRAME as u64;
        let mut next = 0;
        loop {
            let [operation, places, o0, o1, v0, v1, v2, v3] = program[next].to_le_bytes();
            let (to, from) = (usize::from(places & 15), usize::from(places >> 4));
            let offset = isize::from(i16::from_le_bytes([o0, o1]));
            let value = i32::from_le_bytes([v0, v1, v2, v3]);
            let word = u64::from(value as u32);
            let low = |register: u64| register & 0xffff_ffff;
            let at = |base: u64| (base as usize).wrapping_add_signed(offset);
            next += 1;
            let mut jump = |taken: bool| next += if taken { offset as usize } else { 0 };
            match operation {
                LOAD_WORD => {
                    registers[to] = self.read(at(registers[from])..at(registers[from]) + 4);
                }
                LOAD_DOUBLE => {
                    registers[to] = self.read(at(registers[from])..at(registers[from]) + 8);
                }
                STORE_WORD | STORE_HALF => {
                    let length = if operation == STORE_WORD { 4 } else { 2 };
                    let bytes = registers[from].to_le_bytes();
                    self.memory[at(registers[to])..][..length].copy_from_slice(&bytes[..length]);
                }
                MOVE => registers[to] = word,
                MOVE_REGISTER => registers[to] = low(registers[from]),
                MOVE_REGISTER_64 => registers[to] = registers[from],
                OR_REGISTER => registers[to] = low(registers[to] | registers[from]),
                AND => registers[to] &= word,
                ADD_64 => registers[to] = registers[to].wrapping_add_signed(value.into()),
                TO_NETWORK => {
                    assert_eq!(value, 16);
                    registers[to] = u64::from((registers[to] as u16).to_be());
                }
                LOAD_CONSTANT => {
                    registers[to] = (program[next] >> 32) << 32 | word;
                    next += 1;
                }
                JUMP => jump(true),
                JUMP_EQUAL => jump(registers[to] == word),
                JUMP_EQUAL_32 => jump(low(registers[to]) == word),
                JUMP_NOT_EQUAL_32 => jump(low(registers[to]) != word),
                JUMP_NOT_EQUAL_REGISTER => jump(registers[to] != registers[from]),
                CALL => {
                    registers[0] = match value {
                        84 => self.look_up(TCP, &registers),
                        85 => self.look_up(UDP, &registers),
                        86 => {
                            self.held -= 1;
                            0
                        }
                        122 => self.namespace,
                        other => panic!("function {other}"),
                    };
                    // Nothing is to be relied on.
                    registers[1..6].fill(0xdead_beef_dead_beef);
                }
                EXIT => {
                    assert_eq!((registers[0], self.held), (1, 0));
                    return if six {
                        IpAddr::from(<[u8; 16]>::try_from(&self.memory[8..24]).unwrap())
                    } else {
                        IpAddr::from(<[u8; 4]>::try_from(&self.memory[4..8]).unwrap())
                    };
                }
                other => panic!("operation {other:#x}"),
            }
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn network() -> Network {
    let addresses = ["192.0.2.1", "198.51.100.1", "fe80::1", "2001:db8::1"];
    Network::new(COOKIE, addresses.map(|address| address.parse().unwrap()))
}

/// What a program makes of what `kernel` asks.
fn becomes(kernel: Kernel, six: bool, moment: Moment) -> String {
    let family = if six { Family::V6 } else { Family::V4 };
    let program = network().program(family, moment);
    assert!(program.len() < 4096);
    kernel.run(&program, six).to_string()
}

fn goes(protocol: i32, address: &str, sockets: &[&str]) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let mut results = [Moment::Connect, Moment::Send].map(|moment| {
        let kernel = Kernel::asked(protocol, address);
        let kernel = (sockets.iter()).fold(kernel, |kernel, socket| kernel.with(protocol, socket));
        becomes(kernel, address.is_ipv6(), moment)
    });
    assert_eq!(results[0], results[1]);
    std::mem::take(&mut results[0])
}

#[test]
fn what_nobody_in_the_guest_takes_goes_to_the_host() {
    for protocol in [TCP, UDP] {
        for (asked, goes_to) in [
            ("127.0.0.1:80", "169.254.1.2"),
            ("127.3.2.1:80", "169.254.1.2"),
            ("0.0.0.0:80", "169.254.1.2"),
            ("127.0.0.53:53", "169.254.1.3"),
            ("127.0.0.53:80", "169.254.1.2"),
            ("192.0.2.1:80", "169.254.1.4"),
            ("198.51.100.1:80", "169.254.1.4"),
            ("[::ffff:127.0.0.1]:80", "::ffff:169.254.1.2"),
            ("[::ffff:192.0.2.1]:80", "::ffff:169.254.1.4"),
            ("[::1]:80", "fdd3:4c1e:97a2::2"),
            ("[::]:80", "fdd3:4c1e:97a2::2"),
            ("[2001:db8::1]:80", "fdd3:4c1e:97a2::4"),
        ] {
            assert_eq!(goes(protocol, asked, &[]), goes_to, "{asked}");
            let others = ["127.0.0.9:80", "0.0.0.0:81", "[::9]:80"];
            assert_eq!(goes(protocol, asked, &others), goes_to, "{asked}");
        }
    }
}

#[test]
fn what_listens_in_the_guest_comes_first() {
    for protocol in [TCP, UDP] {
        for (asked, socket) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            // One of IPv6 takes IPv4, too.
            ("127.0.0.1:80", "[::]:80"),
            ("127.0.0.53:53", "127.0.0.53:53"),
            ("192.0.2.1:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
            ("[2001:db8::1]:80", "[::]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ] {
            let address: SocketAddr = asked.parse().unwrap();
            let expected = address.ip().to_string();
            assert_eq!(goes(protocol, asked, &[socket]), expected, "{asked}");
        }
        assert_eq!(goes(protocol, "0.0.0.0:80", &["127.0.0.1:80"]), "0.0.0.0");
    }
}

#[test]
fn an_answer_reaches_a_client_of_the_guest_that_takes_no_others() {
    for (server, client, six) in [
        ("127.0.0.1:53", "127.0.0.1:4000", false),
        ("192.0.2.1:53", "192.0.2.1:4000", false),
        ("[::1]:53", "[::1]:4000", true),
        ("[2001:db8::1]:53", "[2001:db8::1]:4000", true),
    ] {
        let [server_at, client_at]: [SocketAddr; 2] =
            [server, client].map(|it| it.parse().unwrap());
        for (answers_from, reaches) in [(server.to_owned(), true), (format!("{server}1"), false)] {
            let mut kernel = Kernel::asked(UDP, client_at).sent_by(&answers_from);
            kernel.sockets = vec![(UDP, client_at, Some(server_at))];
            let left = becomes(kernel, six, Moment::Send);
            assert_eq!(left == client_at.ip().to_string(), reaches, "{left}");
        }
    }
}

#[test]
fn other_addresses_protocols_and_networks_are_left_alone() {
    for asked in [
        "192.0.2.7:80",
        "126.0.0.1:80",
        "169.254.1.2:80",
        "[::2]:80",
        "[2001:db8::2]:80",
        "[fe80::1]:80",
        "[::ffff:192.0.2.7]:80",
    ] {
        let address: SocketAddr = asked.parse().unwrap();
        assert_eq!(goes(TCP, asked, &[]), address.ip().to_string());
    }
    assert_eq!(goes(libc::IPPROTO_SCTP, "127.0.0.1:80", &[]), "127.0.0.1");
    for asked in ["127.0.0.1:80", "[::1]:80"] {
        let address: SocketAddr = asked.parse().unwrap();
        let mut kernel = Kernel::asked(TCP, address);
        kernel.namespace += 1;
        let left = becomes(kernel, address.is_ipv6(), Moment::Connect);
        assert_eq!(left, address.ip().to_string());
    }
}

#[test]
fn the_container_is_shown_the_address_that_it_asked_for() {
    for (comes, shown) in [
        ("169.254.1.2:80", "127.0.0.1"),
        ("169.254.1.3:53", "127.0.0.53"),
        ("169.254.1.4:80", "192.0.2.1"),
        ("192.0.2.7:80", "192.0.2.7"),
        ("[::ffff:169.254.1.2]:80", "::ffff:127.0.0.1"),
        ("[fdd3:4c1e:97a2::2]:80", "::1"),
        ("[fdd3:4c1e:97a2::4]:80", "2001:db8::1"),
        ("[fdd3:4c1e:97a2::5]:80", "fdd3:4c1e:97a2::5"),
        ("[2001:db8::2]:80", "2001:db8::2"),
    ] {
        let address: SocketAddr = comes.parse().unwrap();
        let kernel = Kernel::asked(UDP, address);
        assert_eq!(becomes(kernel, address.is_ipv6(), Moment::From), shown);
        let mut elsewhere = Kernel::asked(UDP, address);
        elsewhere.namespace += 1;
        let left = becomes(elsewhere, address.is_ipv6(), Moment::From);
        assert_eq!(left, address.ip().to_string());
    }
}

#[test]
fn without_ipv6_that_is_left_alone() {
    let address: SocketAddr = "[::1]:80".parse().unwrap();
    let network = Network::new(COOKIE, ["192.0.2.1".parse().unwrap()]);
    let program = network.program(Family::V6, Moment::Connect);
    let left = Kernel::asked(TCP, address).run(&program, true);
    assert_eq!(left, address.ip());
}

/// The kernel's verifier refuses a program that has them.
#[test]
fn no_program_has_steps_that_cannot_be_reached() {
    let addresses: [&[&str]; 5] = [
        &[],
        &["192.0.2.1"],
        &["fe80::1"],
        &["2001:db8::1"],
        &["192.0.2.1", "fe80::1", "2001:db8::1"],
    ];
    for addresses in addresses {
        let parsed = addresses.iter().map(|address| address.parse().unwrap());
        let network = Network::new(COOKIE, parsed);
        for (hook, family, moment) in HOOKS {
            let program = network.program(family, moment);
            let mut reached = vec![false; program.len()];
            let mut next = vec![0];
            while let Some(step) = next.pop() {
                if std::mem::replace(&mut reached[step], true) {
                    continue;
                }
                let [operation, _, o0, o1, ..] = program[step].to_le_bytes();
                let target = step + 1 + usize::from(u16::from_le_bytes([o0, o1]));
                match operation {
                    EXIT => {}
                    JUMP => next.push(target),
                    LOAD_CONSTANT => {
                        reached[step + 1] = true;
                        next.push(step + 2);
                    }
                    JUMP_EQUAL | JUMP_EQUAL_32 | JUMP_NOT_EQUAL_32 | JUMP_NOT_EQUAL_REGISTER => {
                        next.extend([step + 1, target]);
                    }
                    _ => next.push(step + 1),
                }
            }
            let left = reached.iter().position(|&reached| !reached);
            assert_eq!(left, None, "hook {hook} with {addresses:?}");
        }
    }
}
