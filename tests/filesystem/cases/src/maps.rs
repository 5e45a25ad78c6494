//! Files in memory beside files that are read and written.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::check::{Case, Outcome, holds, refused, same};
use crate::other;
use crate::sys::Map;

pub(crate) const CASES: &[Case] = &[
    Case::new("read_sees_the_map", "mmap MAP_SHARED", read_sees_the_map),
    Case::new("map_sees_writes", "mmap MAP_SHARED", map_sees_writes),
    Case::new(
        "maps_see_each_other",
        "mmap MAP_SHARED",
        maps_see_each_other,
    ),
    Case::new(
        "private_map_is_not_written",
        "mmap MAP_PRIVATE",
        private_map_is_not_written,
    ),
    Case::new(
        "map_sees_a_longer_file",
        "mmap, ftruncate",
        map_sees_a_longer_file,
    ),
    Case::new(
        "shorter_file_loses_its_map",
        "mmap SIGBUS",
        shorter_file_loses_its_map,
    ),
    Case::new("beyond_the_end", "mmap SIGBUS", beyond_the_end),
    Case::new(
        "last_page_is_zero_after_the_end",
        "mmap",
        last_page_is_zero_after_the_end,
    ),
    Case::new(
        "map_outlives_the_name",
        "mmap, unlink",
        map_outlives_the_name,
    ),
    Case::new(
        "map_outlives_the_descriptor",
        "mmap, close",
        map_outlives_the_descriptor,
    ),
    Case::new("reader_may_not_write", "mmap EACCES", reader_may_not_write),
    Case::new("msync_updates_the_time", "msync", msync_updates_the_time),
    Case::new(
        "direct_read_sees_the_map",
        "open(2) O_DIRECT, msync",
        direct_read_sees_the_map,
    ),
];

const PAGE: usize = 4096;

/// The file `f`, with two pages of `a`.
fn file() -> Outcome<File> {
    std::fs::write("f", "a".repeat(2 * PAGE))?;
    Ok(File::options().read(true).write(true).open("f")?)
}

fn read(file: &File, at: u64) -> Outcome<[u8; 4]> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn read_sees_the_map() -> Outcome {
    let file = file()?;
    same("before", read(&file, 4094)?, *b"aaaa")?;
    let map = Map::new(&file, 2 * PAGE, MapFlags::SHARED)?;
    map.write(4094, b"tide");
    same("after", read(&file, 4094)?, *b"tide")?;
    same(
        "another open file's",
        read(&File::open("f")?, 4094)?,
        *b"tide",
    )
}

fn map_sees_writes() -> Outcome {
    let file = file()?;
    let map = Map::new(&file, 2 * PAGE, MapFlags::SHARED)?;
    same("before", map.read(4094, 4), b"aaaa".to_vec())?;
    file.write_all_at(b"tide", 4094)?;
    same("after", map.read(4094, 4), b"tide".to_vec())
}

fn maps_see_each_other() -> Outcome {
    let file = file()?;
    let one = Map::new(&file, 2 * PAGE, MapFlags::SHARED)?;
    let two = Map::new(
        File::options().read(true).write(true).open("f")?,
        2 * PAGE,
        MapFlags::SHARED,
    )?;
    one.write(4094, b"tide");
    same("the other", two.read(4094, 4), b"tide".to_vec())
}

fn private_map_is_not_written() -> Outcome {
    let file = file()?;
    let map = Map::new(&file, 2 * PAGE, MapFlags::PRIVATE)?;
    map.write(0, b"tide");
    map.sync()?;
    same("the file", read(&file, 0)?, *b"aaaa")
}

fn map_sees_a_longer_file() -> Outcome {
    let file = file()?;
    file.set_len(100)?;
    let map = Map::new(&file, 2 * PAGE, MapFlags::SHARED)?;
    file.set_len(2 * 4096)?;
    map.write(PAGE, b"tide");
    same("the new page", read(&file, 4096)?, *b"tide")?;
    same("the rest of the old page", read(&file, 100)?, [0; 4])
}

fn killed_by(action: &[&str]) -> Outcome<Option<i32>> {
    Ok(other::process(action)?.signal())
}

fn shorter_file_loses_its_map() -> Outcome {
    let file = file()?;
    same(
        "a page of the file",
        killed_by(&["touch", "f", "4096"])?,
        None,
    )?;
    file.set_len(4096)?;
    same(
        "a page it lost",
        killed_by(&["touch", "f", "4096"])?,
        Some(libc::SIGBUS),
    )
}

fn beyond_the_end() -> Outcome {
    file()?.set_len(1)?;
    same("the last page", killed_by(&["touch", "f", "4095"])?, None)?;
    same(
        "the next one",
        killed_by(&["touch", "f", "4096"])?,
        Some(libc::SIGBUS),
    )
}

fn last_page_is_zero_after_the_end() -> Outcome {
    let file = file()?;
    file.set_len(10)?;
    let map = Map::new(&file, PAGE, MapFlags::SHARED)?;
    same("the end", map.read(8, 4), vec![b'a', b'a', 0, 0])?;
    map.write(10, b"tide");
    map.sync()?;
    drop(map);
    same("the size", file.metadata()?.len(), 10)?;
    file.set_len(100)?;
    same("what was written beyond the end", read(&file, 10)?, [0; 4])
}

fn map_outlives_the_name() -> Outcome {
    let file = file()?;
    let map = Map::new(&file, 2 * PAGE, MapFlags::SHARED)?;
    std::fs::remove_file("f")?;
    map.write(0, b"tide");
    map.sync()?;
    same("the file", read(&file, 0)?, *b"tide")
}

fn map_outlives_the_descriptor() -> Outcome {
    let map = Map::new(file()?, 2 * PAGE, MapFlags::SHARED)?;
    map.write(PAGE, b"tide");
    drop(map);
    same("the file", read(&File::open("f")?, 4096)?, *b"tide")
}

fn reader_may_not_write() -> Outcome {
    file()?;
    let map = Map::new(File::open("f")?, PAGE, MapFlags::SHARED).map(drop);
    refused(Errno::ACCESS, map)?;
    Map::new(File::open("f")?, PAGE, MapFlags::PRIVATE)?;
    Ok(())
}

fn msync_updates_the_time() -> Outcome {
    let file = file()?;
    let map = Map::new(&file, PAGE, MapFlags::SHARED)?;
    let before = file.metadata()?;
    std::thread::sleep(Duration::from_millis(50));
    map.write(0, b"tide");
    map.sync()?;
    let after = file.metadata()?;
    let time = |stat: &std::fs::Metadata| (stat.mtime(), stat.mtime_nsec());
    holds(
        time(&after) > time(&before),
        "the modification time is the old one",
    )
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn direct_read_sees_the_map() -> Outcome {
    let file = file()?;
    let map = Map::new(&file, PAGE, MapFlags::SHARED)?;
    map.write(0, b"tide");
    map.sync()?;
    let direct = File::from(open("f", OFlags::RDONLY | OFlags::DIRECT, Mode::empty())?);
    let mut page = Box::new(Page([0; 4096]));
    direct.read_exact_at(&mut page.0, 0)?;
    same("the file", &page.0[..4], b"tide")
}
