//! BPF programs that the kernel asks about the addresses of containers' sockets: when one is
//! connected, sends a datagram, or is shown where something comes from
//! (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
//!
//! What is in them is up to those who install them. A cgroup may have any number of programs for a
//! hook; each sees the address as the ones before have left it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::bpf::{Assembler, CALL, Instruction, JUMP_NOT_EQUAL_REGISTER, Label, MOVE_REGISTER_64};
use crate::cgroup;
use crate::sys::{self, ProgramKind};

/// When a program is asked: `enum bpf_attach_type` (linux/bpf.h).
pub type Hook = u32;

/// Places in what a program is asked about, `struct bpf_sock_addr` (linux/bpf.h).
pub const IP4: i16 = 4;
/// Four words.
pub const IP6: i16 = 8;
/// In the network's order of bytes.
pub const PORT: i16 = 24;
/// Such as `IPPROTO_TCP`.
pub const PROTOCOL: i16 = 36;

/// Registers: what a call returns; it changes the first six.
pub const RESULT: u8 = 0;
/// Any value.
pub const SCRATCH: u8 = 5;
/// Where a program keeps what it is asked about.
pub const CONTEXT: u8 = 6;

/// Goes on at `elsewhere` unless it is asked in the network namespace of that number
/// (`SO_NETNS_COOKIE`).
pub fn only_in(program: &mut Assembler, namespace: u64, elsewhere: Label) {
    /// Of `enum bpf_func_id`.
    const GET_NETNS_COOKIE: i32 = 122;
    program.put(MOVE_REGISTER_64, 1, CONTEXT, 0, 0);
    program.put(CALL, 0, 0, 0, GET_NETNS_COOKIE);
    program.put_constant(SCRATCH, namespace);
    program.jump(JUMP_NOT_EQUAL_REGISTER, RESULT, SCRATCH, 0, elsewhere);
}

/// A port as it stands in memory.
pub fn on_network(port: u16) -> i32 {
    i32::from(port.to_be())
}

/// Four octets of an address as they stand in memory.
pub fn word(octets: [u8; 4]) -> i32 {
    i32::from_ne_bytes(octets)
}

/// Programs that are asked as long as this is there.
#[derive(Debug)]
pub struct SocketPrograms {
    _links: Vec<OwnedFd>,
}

impl SocketPrograms {
    /// Has all containers ask these from now on; or none of them, if one cannot be loaded.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install(
        programs: impl IntoIterator<Item = (Hook, Vec<Instruction>)>,
    ) -> io::Result<Self> {
        let containers = File::open(cgroup::CONTAINERS)?;
        let links = programs.into_iter().map(|(hook, program)| {
            let hook = ProgramKind::SocketAddress(hook);
            let program = sys::load_program(hook, &program)?;
            sys::link_program(containers.as_fd(), program.as_fd(), hook)
        });
        Ok(Self {
            _links: links.collect::<io::Result<_>>()?,
        })
    }
}
