//! What open(2)'s flags mean, and files that are open while their names go.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fcntl_setfl, linkat, open};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};
use crate::sys::{handle_of, open_handle};

pub(crate) const CASES: &[Case] = &[
    Case::new("unlinked_file_lives", "unlink", unlinked_file_lives),
    Case::new("replaced_file_lives", "rename", replaced_file_lives),
    Case::new(
        "descriptor_follows_a_rename",
        "rename",
        descriptor_follows_a_rename,
    ),
    Case::new("exclusive", "open O_EXCL", exclusive),
    Case::new("truncating", "open O_TRUNC", truncating),
    Case::new("no_follow", "open O_NOFOLLOW", no_follow),
    Case::new("directory", "open O_DIRECTORY", directory),
    Case::new("path_only", "open(2) O_PATH", path_only),
    Case::new("write_to_a_directory", "open EISDIR", write_to_a_directory),
    Case::new("append", "open O_APPEND", append),
    Case::new(
        "append_from_many_threads",
        "open O_APPEND",
        append_from_many_threads,
    ),
    Case::new("append_turned_on", "fcntl F_SETFL", append_turned_on),
    Case::new("temporary", "open(2) O_TMPFILE", temporary),
    Case::new(
        "temporary_gets_a_name",
        "open(2) O_TMPFILE, linkat",
        temporary_gets_a_name,
    ),
    Case::new("direct", "open(2) O_DIRECT", direct),
    Case::new(
        "direct_beside_cached",
        "open(2) O_DIRECT",
        direct_beside_cached,
    ),
    Case::new(
        "open_again_by_descriptor",
        "proc_pid_fd(5)",
        open_again_by_descriptor,
    ),
    Case::new(
        "size_seen_by_every_descriptor",
        "write, fstat",
        size_seen_by_every_descriptor,
    ),
    Case::new("truncate_beside_write", "ftruncate", truncate_beside_write),
    Case::new("sparse_beyond_4_gib", "pwrite", sparse_beyond_4_gib),
    Case::new("program", "execve", program),
    Case::new("script", "execve(2)", script),
    Case::new("file_handle", "open_by_handle_at(2)", file_handle),
    Case::new(
        "stale_file_handle",
        "open_by_handle_at(2) ESTALE",
        stale_file_handle,
    ),
];

fn create(path: &str, content: &str) -> Outcome<File> {
    std::fs::write(path, content)?;
    Ok(File::options().read(true).write(true).open(path)?)
}

fn content(file: &File) -> Outcome<String> {
    let mut file = file;
    let mut content = String::new();
    file.rewind()?;
    file.read_to_string(&mut content)?;
    Ok(content)
}

fn unlinked_file_lives() -> Outcome {
    let file = create("f", "tide")?;
    std::fs::remove_file("f")?;
    same("the links", file.metadata()?.nlink(), 0)?;
    file.write_all_at(b"ebb", 4)?;
    same("the content", content(&file)?.as_str(), "tideebb")?;
    file.set_len(5)?;
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    file.sync_all()?;
    same("the size", file.metadata()?.len(), 5)?;
    same("the mode", file.metadata()?.mode() & 0o7777, 0o600)?;
    // A new file of that name is another one.
    create("f", "flood")?;
    same("the content", content(&file)?.as_str(), "tidee")
}

fn replaced_file_lives() -> Outcome {
    let old = create("f", "old")?;
    create("g", "new")?;
    std::fs::rename("g", "f")?;
    same("the open file", content(&old)?.as_str(), "old")?;
    same("its links", old.metadata()?.nlink(), 0)?;
    same(
        "the name's file",
        std::fs::read_to_string("f")?.as_str(),
        "new",
    )
}

fn descriptor_follows_a_rename() -> Outcome {
    let file = create("f", "tide")?;
    std::fs::rename("f", "g")?;
    file.write_all_at(b"flow", 0)?;
    same(
        "the content",
        std::fs::read_to_string("g")?.as_str(),
        "flow",
    )?;
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    same(
        "the name in /proc",
        name,
        std::env::current_dir()?.join("g"),
    )
}

fn exclusive() -> Outcome {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    open("f", flags, Mode::RWXU)?;
    refused(Errno::EXIST, open("f", flags, Mode::RWXU))?;
    symlink("nowhere", "l")?;
    refused(Errno::EXIST, open("l", flags, Mode::RWXU))?;
    holds(!std::fs::exists("nowhere")?, "the link was followed")
}

fn truncating() -> Outcome {
    let file = create("f", "tide")?;
    open("f", OFlags::TRUNC | OFlags::WRONLY, Mode::empty())?;
    same("the size", file.metadata()?.len(), 0)?;
    same("the content", content(&file)?.as_str(), "")
}

fn no_follow() -> Outcome {
    create("f", "tide")?;
    symlink("f", "l")?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    refused(Errno::LOOP, open("l", flags, Mode::empty()))?;
    open("f", flags, Mode::empty())?;
    Ok(())
}

fn directory() -> Outcome {
    create("f", "tide")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    refused(Errno::NOTDIR, open("f", flags, Mode::empty()))?;
    open(".", flags, Mode::empty())?;
    Ok(())
}

fn path_only() -> Outcome {
    create("f", "tide")?;
    let file = File::from(open("f", OFlags::PATH, Mode::empty())?);
    same("the size", file.metadata()?.len(), 4)?;
    refused(Errno::BADF, rustix::io::read(&file, &mut [0; 4][..]))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    same(
        "the content",
        std::fs::read_to_string(path)?.as_str(),
        "tide",
    )
}

fn write_to_a_directory() -> Outcome {
    std::fs::create_dir("d")?;
    refused(Errno::ISDIR, open("d", OFlags::WRONLY, Mode::empty()))?;
    let file = open("d", OFlags::RDONLY, Mode::empty())?;
    refused(Errno::ISDIR, rustix::io::read(&file, &mut [0; 4][..]))
}

fn append() -> Outcome {
    let mut one = File::options().append(true).create(true).open("f")?;
    let mut two = File::options().append(true).open("f")?;
    one.write_all(b"a")?;
    two.write_all(b"b")?;
    one.write_all(b"c")?;
    create("f", "")?;
    two.write_all(b"d")?;
    one.write_all(b"e")?;
    same("the content", std::fs::read_to_string("f")?.as_str(), "de")
}

fn append_from_many_threads() -> Outcome {
    let line = "a line of some length, from one of the threads\n";
    let writers: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut file = File::options().append(true).create(true).open("f")?;
                (0..200).try_for_each(|_| file.write_all(line.as_bytes()))
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("a panic aborts")?;
    }
    same(
        "the content",
        std::fs::read_to_string("f")? == line.repeat(800),
        true,
    )
}

fn append_turned_on() -> Outcome {
    let mut file = create("f", "tide")?;
    fcntl_setfl(&file, OFlags::APPEND)?;
    file.write_all(b"s")?;
    same(
        "the content",
        std::fs::read_to_string("f")?.as_str(),
        "tides",
    )
}

fn temporary() -> Outcome {
    let mut file = File::from(open(".", OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU)?);
    file.write_all(b"tide")?;
    same("the content", content(&file)?.as_str(), "tide")?;
    same("the links", file.metadata()?.nlink(), 0)?;
    same("the number of names", std::fs::read_dir(".")?.count(), 0)
}

fn temporary_gets_a_name() -> Outcome {
    let mut file = File::from(open(".", OFlags::TMPFILE | OFlags::WRONLY, Mode::RWXU)?);
    file.write_all(b"tide")?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, path, CWD, "f", AtFlags::SYMLINK_FOLLOW)?;
    same(
        "the content",
        std::fs::read_to_string("f")?.as_str(),
        "tide",
    )?;
    same("the links", file.metadata()?.nlink(), 1)
}

#[repr(align(4096))]
struct Pages([u8; 8192]);

fn direct() -> Outcome {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT;
    let file = File::from(open("f", flags, Mode::RWXU)?);
    let mut pages = Box::new(Pages([b'a'; 8192]));
    file.write_all_at(&pages.0, 0)?;
    file.write_all_at(&[b'b'; 8192][..0], 0)?;
    pages.0.fill(0);
    file.read_exact_at(&mut pages.0, 0)?;
    same(
        "the content",
        pages.0.iter().all(|byte| *byte == b'a'),
        true,
    )?;
    same("a read at the end", file.read_at(&mut pages.0, 8192)?, 0)
}

fn direct_beside_cached() -> Outcome {
    let cached = create("f", &"a".repeat(8192))?;
    same("the content", content(&cached)?.len(), 8192)?;
    let direct = File::from(open("f", OFlags::RDWR | OFlags::DIRECT, Mode::empty())?);
    let mut pages = Box::new(Pages([b'b'; 8192]));
    direct.write_all_at(&pages.0, 0)?;
    same(
        "cached after direct",
        content(&cached)? == "b".repeat(8192),
        true,
    )?;
    cached.write_all_at(b"tide", 0)?;
    direct.read_exact_at(&mut pages.0, 0)?;
    same("direct after cached", &pages.0[..5], b"tideb")
}

fn open_again_by_descriptor() -> Outcome {
    let file = create("f", "tide")?;
    std::fs::remove_file("f")?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut again = File::options().read(true).write(true).open(path)?;
    again.write_all(b"flow")?;
    same("the content", content(&file)?.as_str(), "flow")
}

fn size_seen_by_every_descriptor() -> Outcome {
    let one = create("f", "")?;
    let two = File::open("f")?;
    for size in 1..=100 {
        one.write_all_at(b"a", size - 1)?;
        same("the size", two.metadata()?.len(), size)?;
        same("the name's size", std::fs::metadata("f")?.len(), size)?;
    }
    Ok(())
}

fn truncate_beside_write() -> Outcome {
    let file = create("f", &"a".repeat(6000))?;
    file.set_len(100)?;
    file.set_len(6000)?;
    let content = content(&file)?;
    same(
        "what was cut off",
        content == "a".repeat(100) + &"\0".repeat(5900),
        true,
    )
}

fn sparse_beyond_4_gib() -> Outcome {
    let far = 5 << 30;
    let file = create("f", "")?;
    file.write_all_at(b"tide", far)?;
    same("the size", file.metadata()?.len(), far + 4)?;
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, far - 4)?;
    same("the content", &bytes, b"\0\0\0\0tide")
}

fn program() -> Outcome {
    std::fs::copy("/proc/self/exe", "program")?;
    std::fs::set_permissions("program", PermissionsExt::from_mode(0o755))?;
    let status = Command::new("./program")
        .args(["--other", "true"])
        .status()?;
    same("its end", status.code(), Some(0))?;
    std::fs::set_permissions("program", PermissionsExt::from_mode(0o644))?;
    let refusal = Command::new("./program")
        .status()
        .map_err(|error| error.raw_os_error());
    same(
        "without the right",
        refusal.err().flatten(),
        Some(libc::EACCES),
    )
}

fn script() -> Outcome {
    std::fs::write("script", "#!/bin/sh\nexit 7\n")?;
    std::fs::set_permissions("script", PermissionsExt::from_mode(0o755))?;
    same(
        "its end",
        Command::new("./script").status()?.code(),
        Some(7),
    )
}

fn file_handle() -> Outcome {
    create("f", "tide")?;
    let mount = open(".", OFlags::RDONLY, Mode::empty())?;
    let mut handle = handle_of(c"f")?;
    std::fs::rename("f", "g")?;
    let file = open_handle(rustix::fd::AsFd::as_fd(&mount), &mut handle)?;
    same("the content", content(&file.into())?.as_str(), "tide")
}

fn stale_file_handle() -> Outcome {
    create("f", "tide")?;
    let mount = open(".", OFlags::RDONLY, Mode::empty())?;
    let mut handle = handle_of(c"f")?;
    std::fs::remove_file("f")?;
    refused(
        Errno::STALE,
        open_handle(rustix::fd::AsFd::as_fd(&mount), &mut handle),
    )
}
