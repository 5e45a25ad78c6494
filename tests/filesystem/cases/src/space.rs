//! Which bytes of a file take space, and moving them.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek, statvfs};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};

pub(crate) const CASES: &[Case] = &[
    Case::new("holes_are_found", "lseek(2) SEEK_HOLE", holes_are_found),
    Case::new("holes_take_no_space", "stat st_blocks", holes_take_no_space),
    Case::new(
        "punched_hole",
        "fallocate(2) FALLOC_FL_PUNCH_HOLE",
        punched_hole,
    ),
    Case::new(
        "zeroed_range",
        "fallocate(2) FALLOC_FL_ZERO_RANGE",
        zeroed_range,
    ),
    Case::new(
        "reserved_space",
        "fallocate(2) FALLOC_FL_KEEP_SIZE",
        reserved_space,
    ),
    Case::new("allocated_space", "posix_fallocate", allocated_space),
    Case::new(
        "collapsed_range",
        "fallocate(2) FALLOC_FL_COLLAPSE_RANGE",
        collapsed_range,
    ),
    Case::new(
        "inserted_range",
        "fallocate(2) FALLOC_FL_INSERT_RANGE",
        inserted_range,
    ),
    Case::new("too_much", "posix_fallocate ENOSPC", too_much),
    Case::new("copied_range", "copy_file_range(2)", copied_range),
    Case::new(
        "copied_range_at_the_end",
        "copy_file_range(2)",
        copied_range_at_the_end,
    ),
    Case::new("free_space", "statvfs", free_space),
    Case::new("file_system_limits", "statvfs", file_system_limits),
];

const MIB: u64 = 1 << 20;

fn create(length: usize) -> Outcome<File> {
    std::fs::write("f", vec![b'a'; length])?;
    Ok(File::options().read(true).write(true).open("f")?)
}

/// A file of 4 MiB with 64 KiB of data in its middle.
fn sparse() -> Outcome<File> {
    let file = create(0)?;
    file.set_len(4 * MIB)?;
    file.write_all_at(&[b'a'; 65_536], 2 * MIB)?;
    Ok(file)
}

fn holes_are_found() -> Outcome {
    let file = sparse()?;
    same("the data", seek(&file, SeekFrom::Data(0))?, 2 * MIB)?;
    same(
        "the hole after it",
        seek(&file, SeekFrom::Hole(2 * MIB))?,
        2 * MIB + 65_536,
    )?;
    same("the hole before it", seek(&file, SeekFrom::Hole(0))?, 0)?;
    refused(Errno::NXIO, seek(&file, SeekFrom::Data(3 * MIB)))?;
    refused(Errno::NXIO, seek(&file, SeekFrom::Hole(4 * MIB)))
}

fn holes_take_no_space() -> Outcome {
    let file = sparse()?;
    file.sync_all()?;
    let blocks = file.metadata()?.blocks();
    holds(
        (128..=256).contains(&blocks),
        &format!("64 KiB take {blocks} blocks"),
    )
}

fn content_at(file: &File, at: u64) -> Outcome<u8> {
    let mut byte = [1];
    file.read_exact_at(&mut byte, at)?;
    Ok(byte[0])
}

fn punched_hole() -> Outcome {
    let file = create(1 << 20)?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, 100_000, 900_000)?;
    same("the size", file.metadata()?.len(), MIB)?;
    same("the byte before", content_at(&file, 99_999)?, b'a')?;
    same("the first byte", content_at(&file, 100_000)?, 0)?;
    same("the last byte", content_at(&file, 999_999)?, 0)?;
    same("the byte after", content_at(&file, 1_000_000)?, b'a')?;
    let saved = before - file.metadata()?.blocks();
    holds(saved > 1600, &format!("900 kB free {saved} blocks"))
}

fn zeroed_range() -> Outcome {
    let file = create(10_000)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 5000, 10_000)?;
    same("the size", file.metadata()?.len(), 15_000)?;
    same("the byte before", content_at(&file, 4999)?, b'a')?;
    same("the first byte", content_at(&file, 5000)?, 0)
}

fn reserved_space() -> Outcome {
    let file = create(10)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB)?;
    same("the size", file.metadata()?.len(), 10)?;
    let blocks = file.metadata()?.blocks();
    holds(blocks >= 2048, &format!("1 MiB takes {blocks} blocks"))
}

fn allocated_space() -> Outcome {
    let file = create(10)?;
    fallocate(&file, FallocateFlags::empty(), 5, MIB)?;
    same("the size", file.metadata()?.len(), MIB + 5)?;
    same("the old content", content_at(&file, 9)?, b'a')?;
    same("the new content", content_at(&file, 10)?, 0)
}

fn collapsed_range() -> Outcome {
    let file = create(4 * 4096)?;
    file.write_all_at(b"b", 8192)?;
    fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 8192)?;
    same("the size", file.metadata()?.len(), 8192)?;
    same("the first byte", content_at(&file, 0)?, b'b')
}

fn inserted_range() -> Outcome {
    let file = create(4 * 4096)?;
    fallocate(&file, FallocateFlags::INSERT_RANGE, 4096, 4096)?;
    same("the size", file.metadata()?.len(), 5 * 4096)?;
    same("the new content", content_at(&file, 4096)?, 0)
}

fn too_much() -> Outcome {
    let file = create(0)?;
    let everything = fallocate(&file, FallocateFlags::empty(), 0, MIB << 20);
    refused(Errno::NOSPC, everything)
}

fn copied_range() -> Outcome {
    let from = create(100_000)?;
    from.write_all_at(b"tide", 50_000)?;
    std::fs::write("to", "b".repeat(1000))?;
    let to = File::options().read(true).write(true).open("to")?;
    // In the cache of whoever reads it.
    same("before", content_at(&to, 900)?, b'b')?;
    let (mut at, mut into) = (50_000, 900);
    let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 10_000)?;
    same("the number of bytes", copied, 10_000)?;
    same("the positions", (at, into), (60_000, 10_900))?;
    same("the size", to.metadata()?.len(), 10_900)?;
    let mut bytes = [0; 6];
    to.read_exact_at(&mut bytes, 899)?;
    same("the content", &bytes, b"btidea")
}

fn copied_range_at_the_end() -> Outcome {
    let from = create(100)?;
    let to = File::create("to")?;
    let (mut at, mut into) = (90, 0);
    let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 1000)?;
    same("the number of bytes", copied, 10)?;
    let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 1000)?;
    same("the number of bytes at the end", copied, 0)
}

fn free_space() -> Outcome {
    let before = statvfs(".")?;
    let file = create(0)?;
    fallocate(&file, FallocateFlags::empty(), 0, 16 * MIB)?;
    file.sync_all()?;
    let used = (before.f_bfree - statvfs(".")?.f_bfree) * before.f_frsize;
    holds(
        (15 * MIB..20 * MIB).contains(&used),
        &format!("16 MiB take {used} bytes"),
    )
}

fn file_system_limits() -> Outcome {
    let found = statvfs(".")?;
    same("the longest name", found.f_namemax, 255)?;
    holds(
        found.f_blocks >= found.f_bfree,
        "more is free than there is",
    )?;
    holds(
        found.f_bfree >= found.f_bavail,
        "more is available than is free",
    )?;
    holds(found.f_files > found.f_ffree, "there is a file too few")
}
