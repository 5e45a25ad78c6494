//! BPF programs of cgroups (bpf(2)): to load one, and to have a cgroup ask it.

#![expect(unsafe_code, reason = "no crate has bpf(2) without its libraries")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// What a BPF program of a cgroup decides on.
#[derive(Clone, Copy, Debug)]
pub enum ProgramKind {
    /// The use of devices (`BPF_PROG_TYPE_CGROUP_DEVICE`).
    Device,
    /// Addresses of sockets (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`), with its `enum bpf_attach_type`.
    SocketAddress(u32),
}

impl ProgramKind {
    /// `enum bpf_prog_type`.
    fn program(self) -> u32 {
        match self {
            Self::Device => 15,
            Self::SocketAddress(_) => 18,
        }
    }

    /// `enum bpf_attach_type`.
    fn attachment(self) -> u32 {
        match self {
            Self::Device => 6,
            Self::SocketAddress(attachment) => attachment,
        }
    }
}

/// The part of `union bpf_attr` (linux/bpf.h) that `BPF_PROG_LOAD` needs; the rest is zero.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    /// Log, versions, flags, name and network card.
    unused: [u32; 11],
    attachment: u32,
}

/// Likewise for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachProgram {
    target: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
}

/// `bpf(2)`: the kernel reads as many bytes of `attributes` as it has.
///
/// # Safety
/// `attributes` are those of `command`; what they point to or name is there across the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let attributes: *const T = attributes;
    // SAFETY: the pointer is a reference's, with its size; the rest is the caller's to see to.
    let done = Errno::result(unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>())
    })?;
    RawFd::try_from(done).map_err(io::Error::other)
}

/// Loads a program.
///
/// # Errors
/// `bpf(2)`: `EINVAL` or `EACCES` if the kernel's verifier refuses it.
pub fn load_program(kind: ProgramKind, instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    // The kernel checks that addresses are the process's own; a pointer fits in 64 bits.
    let address = |pointer: *const u8| pointer.addr() as u64;
    let load = LoadProgram {
        kind: kind.program(),
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: address(instructions.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        unused: [0; 11],
        attachment: kind.attachment(),
    };
    // SAFETY: the kernel reads `size_of::<LoadProgram>()` bytes of `load`, `count` instructions of
    // eight bytes and the license up to its NUL; all of them live across the call.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Makes a cgroup ask `program`, besides those of the cgroups above and, later, below.
///
/// # Errors
/// What `bpf(2)` says.
pub fn attach_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    kind: ProgramKind,
) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach = AttachProgram {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: kind.attachment(),
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `size_of::<AttachProgram>()` bytes of `attach`, which lives across
    // the call; both descriptors are borrowed, so open.
    unsafe { bpf(BPF_PROG_ATTACH, &attach) }?;
    Ok(())
}

/// The part of `union bpf_attr` that `BPF_LINK_CREATE` needs; the rest is zero.
#[repr(C)]
struct CreateLink {
    program: RawFd,
    target: RawFd,
    kind: u32,
    flags: u32,
}

/// Makes a cgroup ask `program`, besides others, as long as what is returned is open.
///
/// # Errors
/// What `bpf(2)` says.
pub fn link_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    kind: ProgramKind,
) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    let create = CreateLink {
        program: program.as_raw_fd(),
        target: cgroup.as_raw_fd(),
        kind: kind.attachment(),
        flags: 0,
    };
    // SAFETY: the kernel reads `size_of::<CreateLink>()` bytes of `create`, which lives across the
    // call; both descriptors are borrowed, so open.
    let link = unsafe { bpf(BPF_LINK_CREATE, &create) }?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}
