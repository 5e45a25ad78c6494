//! The system calls that Rust cannot check, behind signatures that it can.

#![expect(
    unsafe_code,
    reason = "fork, ioctls and descriptors received over a socket"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::ForkResult;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Runs `child` in a forked process that exits with what it returns, and returns its process id.
///
/// The child has the default signal dispositions, and of the caller's descriptors only standard input, output and error and those in `keep`: it shares no socket,
/// pipe or epoll instance with the agent by accident, however long it lives.
///
/// The calling process must have one thread.
///
/// # Errors
/// `fork(2)`: no memory, or too many processes.
pub fn fork(keep: &[BorrowedFd<'_>], child: impl FnOnce() -> i32) -> io::Result<i32> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    // SAFETY: the agent runs one thread, so no lock is held by a thread that the child lacks, and
    // the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            default_signals();
            close_all_but(&keep);
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the process without running the parent's destructors, which would act
            // on descriptors closed above.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Closes every descriptor above standard error that is not in `keep` (sorted).
fn close_all_but(keep: &[RawFd]) {
    let mut first: libc::c_uint = 3;
    let bounds = keep
        .iter()
        .filter_map(|fd| libc::c_uint::try_from(*fd).ok());
    for kept in bounds.filter(|fd| *fd >= 3) {
        if first < kept {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: called only in a new child, which never uses nor drops the owners of these
    // descriptors (see `fork`). It cannot fail with a valid range and no flags.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Undoes what the agent and Rust's runtime did to signals: a handler for SIGCHLD, which writes to
/// a descriptor that the child is about to close, and SIGPIPE ignored, which `execve(2)` preserves.
fn default_signals() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGCHLD, Signal::SIGPIPE] {
        // SAFETY: the default disposition runs no code of this process.
        let _ = unsafe { nix::sys::signal::sigaction(signal, &default) };
    }
}

/// Sends `signal`, which may be a real-time one, to one process.
///
/// # Errors
/// `kill(2)`: `ESRCH` if there is no such process, `EINVAL` if no such signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    debug_assert!(pid > 0, "0 and below name groups of processes");
    // SAFETY: takes two integers.
    Errno::result(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Sets a terminal's size in characters (`TIOCSWINSZ`, tty_ioctl(4)).
///
/// # Errors
/// `ENOTTY` if `terminal` is none.
pub fn set_window_size(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which lives across the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Receives one descriptor that the peer sent with `SCM_RIGHTS` (unix(7)).
///
/// # Errors
/// `InvalidData` if the message carries none, or what `recvmsg(2)` says.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut data = [0; 64];
    let mut data = [IoSliceMut::new(&mut data)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let fd = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers a descriptor with the runtime of the calling task.
///
/// # Errors
/// What `epoll_ctl(2)` says, e.g. `EPERM` for a file that is always ready.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives, and it lives
    // in the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Brings the network interface `lo` up (netdevice(7)).
///
/// # Errors
/// What `socket(2)` or the ioctls say.
pub fn bring_up_loopback() -> io::Result<()> {
    // SAFETY: takes three integers; the result is checked before it is used.
    let socket = Errno::result(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: a descriptor that was opened a line above, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: an `ifreq` is plain data, for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::try_from(*from).expect("ASCII");
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the `ifreq` it is given.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    })?;
    let up = libc::c_short::try_from(libc::IFF_UP).expect("a bit below 16");
    // SAFETY: the kernel has just filled in `ifru_flags`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads the `ifreq` it is given.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })?;
    Ok(())
}

/// The pairs of queues that a network card has and its driver uses.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    /// How many there are.
    pub most: u32,
    /// How many of them are used.
    pub used: u32,
}

/// `struct ethtool_channels` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct EthtoolChannels {
    command: u32,
    /// Receive and transmit queues, which virtio's cards have in pairs alone, and others.
    most_apart: [u32; 3],
    most: u32,
    apart: [u32; 3],
    used: u32,
}

/// Asks how many pairs of queues the network interface has, in the namespace of `socket`.
///
/// # Errors
/// `EOPNOTSUPP` if its driver has none, `ENODEV` if there is no such interface.
pub fn channels(socket: BorrowedFd<'_>, interface: &str) -> io::Result<Channels> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_GCHANNELS,
        ..EthtoolChannels::default()
    };
    ethtool(socket, interface, &mut channels)?;
    Ok(Channels {
        most: channels.most,
        used: channels.used,
    })
}

/// Has the driver of the network interface use so many pairs of queues.
///
/// # Errors
/// `EINVAL` if the card has fewer; what the driver says.
pub fn set_channels(socket: BorrowedFd<'_>, interface: &str, used: u32) -> io::Result<()> {
    const ETHTOOL_SCHANNELS: u32 = 0x3d;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_SCHANNELS,
        used,
        ..EthtoolChannels::default()
    };
    ethtool(socket, interface, &mut channels)
}

fn ethtool(
    socket: BorrowedFd<'_>,
    interface: &str,
    channels: &mut EthtoolChannels,
) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    // SAFETY: an `ifreq` is plain data, for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut *channels).cast();
    // SAFETY: SIOCETHTOOL with these commands reads, and writes, one `ethtool_channels`, to which the
    // `ifreq` points, and which lives across the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

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
    let program = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<LoadProgram>(),
        )
    })?;
    let program = RawFd::try_from(program).map_err(io::Error::other)?;
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
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<AttachProgram>(),
        )
    })?;
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
    let link = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const create,
            size_of::<CreateLink>(),
        )
    })?;
    let link = RawFd::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the kernel has just installed this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// The number that BPF programs know this network namespace by (`SO_NETNS_COOKIE`).
///
/// # Errors
/// What `socket(2)` or `getsockopt(2)` says.
pub fn network_namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("eight");
    // SAFETY: the kernel writes at most `length` bytes, which `cookie` has, and their number.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_child_keeps_the_descriptors_it_was_given_and_no_other() {
        let (mut kept, theirs) = UnixStream::pair().unwrap();
        let (mut dropped, ours) = UnixStream::pair().unwrap();
        let ours_raw = ours.as_raw_fd();

        let pid = fork(&[theirs.as_fd()], || {
            let closed = nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_GETFD).is_err();
            (&theirs).write_all(&[u8::from(closed)]).map_or(1, |()| 0)
        })
        .unwrap();
        drop(theirs);
        drop(ours);

        let mut said = Vec::new();
        kept.read_to_end(&mut said).unwrap();
        assert_eq!(said, [1], "descriptor {ours_raw} was open in the child");
        assert_eq!(dropped.read(&mut [0]).unwrap(), 0);
        assert_eq!(
            waitpid(Pid::from_raw(pid), None).unwrap(),
            WaitStatus::Exited(Pid::from_raw(pid), 0)
        );
    }

    #[test]
    fn a_message_without_a_descriptor_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"none").unwrap();

        let error = receive_fd(&ours).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
