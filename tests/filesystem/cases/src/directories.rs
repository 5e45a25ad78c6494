//! Reading directories, also while they change.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{File, read_dir};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, symlink};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, mkdirat, mknodat, open, openat, seek,
    unlinkat,
};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};

pub(crate) const CASES: &[Case] = &[
    Case::new("many_entries", "readdir", many_entries),
    Case::new(
        "any_byte_in_a_name",
        "XBD 3.170 Filename",
        any_byte_in_a_name,
    ),
    Case::new("longest_name", "pathconf NAME_MAX", longest_name),
    Case::new("types", "readdir(3) d_type", types),
    Case::new("inode_numbers", "readdir d_ino", inode_numbers),
    Case::new("removing_what_was_read", "readdir", removing_what_was_read),
    Case::new("creating_while_reading", "readdir", creating_while_reading),
    Case::new("positions", "seekdir", positions),
    Case::new(
        "rewinding_shows_changes",
        "rewinddir",
        rewinding_shows_changes,
    ),
    Case::new("removed_directory", "rmdir", removed_directory),
    Case::new(
        "removed_working_directory",
        "getcwd(3) ENOENT",
        removed_working_directory,
    ),
    Case::new("link_counts", "inode(7)", link_counts),
    Case::new("parent_after_rename", "rename", parent_after_rename),
    Case::new(
        "long_symbolic_link",
        "symlink(2) PATH_MAX",
        long_symbolic_link,
    ),
    Case::new(
        "forty_symbolic_links",
        "path_resolution(7) ELOOP",
        forty_symbolic_links,
    ),
];

fn names(path: &str) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn many_entries() -> Outcome {
    // Several times what one getdents(2) returns.
    const COUNT: usize = 2000;
    for number in 0..COUNT {
        let name = format!("entry-with-a-name-of-some-length-{number}");
        mknodat(CWD, name, FileType::RegularFile, Mode::RWXU, 0)?;
    }
    let names = names(".")?;
    same("the number of names", names.len(), COUNT)?;
    let different: BTreeSet<String> = names.into_iter().collect();
    same("the number of different names", different.len(), COUNT)
}

fn any_byte_in_a_name() -> Outcome {
    let bytes = || (1..=255).filter(|byte| *byte != b'/');
    for byte in bytes() {
        File::create(OsStr::from_bytes(&[b'n', byte]))?;
    }
    let mut found = Vec::new();
    for entry in read_dir(".")? {
        found.push(entry?.file_name().as_bytes()[1]);
    }
    found.sort_unstable();
    same("the bytes", found, bytes().collect())
}

fn longest_name() -> Outcome {
    let name = "n".repeat(255);
    File::create(&name)?;
    same("the names", names(".")?, vec![name.clone()])?;
    let longer = open(
        format!("{name}n"),
        OFlags::CREATE | OFlags::RDWR,
        Mode::empty(),
    );
    refused(Errno::NAMETOOLONG, longer)
}

fn types() -> Outcome {
    File::create("file")?;
    std::fs::create_dir("directory")?;
    symlink("file", "link")?;
    mknodat(CWD, "fifo", FileType::Fifo, Mode::RWXU, 0)?;
    mknodat(CWD, "socket", FileType::Socket, Mode::RWXU, 0)?;
    let directory = open(".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut found = BTreeMap::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.insert(name, format!("{:?}", entry.file_type()));
    }
    let expected = [
        (".", FileType::Directory),
        ("..", FileType::Directory),
        ("directory", FileType::Directory),
        ("fifo", FileType::Fifo),
        ("file", FileType::RegularFile),
        ("link", FileType::Symlink),
        ("socket", FileType::Socket),
    ];
    let expected = expected.map(|(name, kind)| (name.to_owned(), format!("{kind:?}")));
    same("the types", found, BTreeMap::from(expected))
}

fn inode_numbers() -> Outcome {
    File::create("f")?;
    std::fs::create_dir("d")?;
    for entry in read_dir(".")? {
        let entry = entry?;
        let stat = std::fs::symlink_metadata(entry.path())?;
        same("an inode number", entry.ino(), stat.ino())?;
    }
    Ok(())
}

/// POSIX leaves open whether a removed entry is still read, but not whether the others are.
fn removing_what_was_read() -> Outcome {
    for number in 0..500 {
        File::create(format!("entry-with-a-name-of-some-length-{number}"))?;
    }
    for entry in read_dir(".")? {
        std::fs::remove_file(entry?.path())?;
    }
    same("what is left", names(".")?, Vec::new())
}

fn creating_while_reading() -> Outcome {
    for number in 0..500 {
        File::create(format!("old-entry-with-a-name-of-some-length-{number}"))?;
    }
    let mut old = Vec::new();
    for (number, entry) in read_dir(".")?.enumerate().take(10_000) {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("old") {
            File::create(format!("new-{number}"))?;
            old.push(name);
        }
    }
    let different: BTreeSet<&String> = old.iter().collect();
    same("the number of old names", different.len(), 500)?;
    same("how often they were read", old.len(), 500)
}

/// The names from the directory's position on, with the position after each.
fn rest(directory: &File) -> Outcome<Vec<(String, u64)>> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut rest = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        rest.push((name, entry.next_entry_cookie()));
    }
    Ok(rest)
}

fn positions() -> Outcome {
    for number in 0..100 {
        File::create(format!("entry-{number}"))?;
    }
    let directory: File = open(".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?.into();
    let all = rest(&directory)?;
    for at in [0, 1, 50, 99] {
        seek(&directory, SeekFrom::Start(all[at].1))?;
        same("the rest", rest(&directory)?, all[at + 1..].to_vec())?;
    }
    Ok(())
}

fn rewinding_shows_changes() -> Outcome {
    let directory: File = open(".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?.into();
    File::create("old")?;
    same("the number of entries", rest(&directory)?.len(), 3)?;
    std::fs::remove_file("old")?;
    File::create("new")?;
    File::create("newer")?;
    seek(&directory, SeekFrom::Start(0))?;
    let names: BTreeSet<String> = rest(&directory)?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let expected = [".", "..", "new", "newer"].map(str::to_owned);
    same("the names", names, BTreeSet::from(expected))
}

fn removed_directory() -> Outcome {
    std::fs::create_dir("d")?;
    let directory = open("d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    std::fs::remove_dir("d")?;
    let create = OFlags::CREATE | OFlags::WRONLY;
    refused(Errno::NOENT, openat(&directory, "f", create, Mode::RWXU))?;
    refused(Errno::NOENT, mkdirat(&directory, "d", Mode::RWXU))
}

fn removed_working_directory() -> Outcome {
    let base = std::env::current_dir()?;
    std::fs::create_dir("d")?;
    std::env::set_current_dir("d")?;
    std::fs::remove_dir(base.join("d"))?;
    let found = rustix::process::getcwd(Vec::new());
    std::env::set_current_dir(base)?;
    refused(Errno::NOENT, found)
}

fn link_counts() -> Outcome {
    File::create("a")?;
    std::fs::hard_link("a", "b")?;
    let links = |path: &str| Ok::<u64, std::io::Error>(std::fs::metadata(path)?.nlink());
    same("the links of a", links("a")?, 2)?;
    same(
        "the inode of b",
        std::fs::metadata("b")?.ino(),
        std::fs::metadata("a")?.ino(),
    )?;
    std::fs::write("b", "tide")?;
    same("the size of a", std::fs::metadata("a")?.len(), 4)?;
    std::fs::remove_file("a")?;
    same("the links of b", links("b")?, 1)?;
    // A directory's are no promise of POSIX's, but the same before and after.
    let before = links(".")?;
    std::fs::create_dir("d")?;
    links(".")?;
    std::fs::remove_dir("d")?;
    same("the links of the directory", links(".")?, before)
}

fn parent_after_rename() -> Outcome {
    std::fs::create_dir_all("a/d")?;
    std::fs::create_dir("b")?;
    File::create("b/f")?;
    let directory = open("a/d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    std::fs::rename("a/d", "b/d")?;
    openat(&directory, "../f", OFlags::RDONLY, Mode::empty())?;
    unlinkat(&directory, "../f", AtFlags::empty())?;
    holds(!std::fs::exists("b/f")?, "the file is still there")
}

fn long_symbolic_link() -> Outcome {
    let target = "t".repeat(4095);
    symlink(&target, "l")?;
    same(
        "the target",
        std::fs::read_link("l")?.to_string_lossy().as_ref(),
        &target,
    )?;
    same("the size", std::fs::symlink_metadata("l")?.len(), 4095)?;
    refused(
        Errno::NAMETOOLONG,
        rustix::fs::symlink(format!("{target}t"), "m"),
    )
}

fn forty_symbolic_links() -> Outcome {
    File::create("0")?;
    for number in 1..=41 {
        symlink(format!("{}", number - 1), format!("{number}"))?;
    }
    open("40", OFlags::RDONLY, Mode::empty())?;
    refused(Errno::LOOP, open("41", OFlags::RDONLY, Mode::empty()))
}
