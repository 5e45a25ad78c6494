//! FIFOs, sockets, devices, and inotify(7).

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};
use crate::user::as_user;

pub(crate) const CASES: &[Case] = &[
    Case::new("fifo", "mkfifo", fifo),
    Case::new("fifo_without_reader", "open ENXIO", fifo_without_reader),
    Case::new("stream_socket", "bind", stream_socket),
    Case::new("datagram_socket", "bind", datagram_socket),
    Case::new("socket_name_in_use", "bind EADDRINUSE", socket_name_in_use),
    Case::new("socket_of_another_user", "unix(7)", socket_of_another_user),
    Case::new(
        "socket_without_listener",
        "connect ECONNREFUSED",
        socket_without_listener,
    ),
    Case::new("open_a_socket", "open(2) ENXIO", open_a_socket),
    Case::new("device", "mknod(2)", device),
    Case::new(
        "device_needs_a_right",
        "mknod(2) EPERM",
        device_needs_a_right,
    ),
    Case::new("watched_directory", "inotify(7)", watched_directory),
    Case::new("watched_file", "inotify(7)", watched_file),
];

fn fifo() -> Outcome {
    mknodat(CWD, "f", FileType::Fifo, Mode::RWXU, 0)?;
    holds(
        std::fs::metadata("f")?.file_type().is_fifo(),
        "it is no FIFO",
    )?;
    let writer = std::thread::spawn(|| File::options().write(true).open("f")?.write_all(b"tide"));
    let read = std::fs::read_to_string("f")?;
    writer.join().expect("a panic aborts")?;
    same("what was read", read.as_str(), "tide")
}

fn fifo_without_reader() -> Outcome {
    mknodat(CWD, "f", FileType::Fifo, Mode::RWXU, 0)?;
    let writer = open("f", OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
    refused(Errno::NXIO, writer)
}

fn stream_socket() -> Outcome {
    let listener = UnixListener::bind("s")?;
    holds(
        std::fs::metadata("s")?.file_type().is_socket(),
        "it is no socket",
    )?;
    UnixStream::connect("s")?.write_all(b"tide")?;
    let mut read = String::new();
    listener.accept()?.0.read_to_string(&mut read)?;
    same("what was read", read.as_str(), "tide")?;
    // Its name may change while it listens.
    std::fs::rename("s", "t")?;
    UnixStream::connect("t").map(drop)?;
    Ok(())
}

fn datagram_socket() -> Outcome {
    let receiver = UnixDatagram::bind("s")?;
    UnixDatagram::unbound()?.send_to(b"tide", "s")?;
    let mut read = [0; 8];
    same("what was read", receiver.recv(&mut read)?, 4)
}

fn os_error<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn socket_name_in_use() -> Outcome {
    File::create("s")?;
    refused(Errno::ADDRINUSE, os_error(UnixListener::bind("s")))
}

fn socket_of_another_user() -> Outcome {
    let _listener = UnixListener::bind("s")?;
    std::fs::set_permissions("s", PermissionsExt::from_mode(0o600))?;
    as_user(&[], || {
        refused(Errno::ACCESS, os_error(UnixStream::connect("s")))
    })?;
    std::fs::set_permissions("s", PermissionsExt::from_mode(0o666))?;
    as_user(&[], || Ok(UnixStream::connect("s").map(drop)?))
}

fn socket_without_listener() -> Outcome {
    drop(UnixListener::bind("s")?);
    refused(Errno::CONNREFUSED, os_error(UnixStream::connect("s")))
}

fn open_a_socket() -> Outcome {
    let _listener = UnixListener::bind("s")?;
    refused(Errno::NXIO, open("s", OFlags::RDONLY, Mode::empty()))
}

fn device() -> Outcome {
    mknodat(
        CWD,
        "zero",
        FileType::CharacterDevice,
        Mode::RWXU,
        makedev(1, 5),
    )?;
    same(
        "the device",
        std::fs::metadata("zero")?.rdev(),
        makedev(1, 5),
    )?;
    let mut bytes = [1; 4];
    File::open("zero")?.read_exact(&mut bytes)?;
    same("what was read", bytes, [0; 4])
}

fn device_needs_a_right() -> Outcome {
    std::fs::set_permissions(".", PermissionsExt::from_mode(0o777))?;
    as_user(&[], || {
        let device = mknodat(
            CWD,
            "d",
            FileType::CharacterDevice,
            Mode::RWXU,
            makedev(1, 5),
        );
        refused(Errno::PERM, device)
    })
}

/// Watches `path` while `action` runs; what happened to which name.
fn events(path: &str, action: impl FnOnce() -> Outcome) -> Outcome<Vec<(ReadFlags, String)>> {
    let watcher = inotify::init(CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF;
    inotify::add_watch(&watcher, path, flags)?;
    action()?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watcher, &mut buffer);
    let mut events = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().unwrap_or_default();
                events.push((event.events(), name.to_string_lossy().into_owned()));
            }
            Err(Errno::AGAIN) => return Ok(events),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn watched_directory() -> Outcome {
    let events = events(".", || {
        std::fs::write("a", "tide")?;
        std::fs::rename("a", "b")?;
        Ok(std::fs::remove_file("b")?)
    })?;
    let expected = [
        (ReadFlags::CREATE, "a"),
        (ReadFlags::MODIFY, "a"),
        (ReadFlags::CLOSE_WRITE, "a"),
        (ReadFlags::MOVED_FROM, "a"),
        (ReadFlags::MOVED_TO, "b"),
        (ReadFlags::DELETE, "b"),
    ];
    let expected = expected.map(|(event, name)| (event, name.to_owned()));
    same("what happened", events, expected.to_vec())
}

fn watched_file() -> Outcome {
    std::fs::write("f", "tide")?;
    let events = events("f", || {
        std::fs::set_permissions("f", PermissionsExt::from_mode(0o600))?;
        Ok(std::fs::remove_file("f")?)
    })?;
    let kinds: Vec<ReadFlags> = events.into_iter().map(|(event, _)| event).collect();
    // IGNORED ends the watch.
    let expected = [
        ReadFlags::ATTRIB,
        ReadFlags::DELETE_SELF,
        ReadFlags::IGNORED,
    ];
    same("what happened", kinds, expected.to_vec())
}
