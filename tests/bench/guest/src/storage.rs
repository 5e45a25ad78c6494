//! Files and devices, past the guest's page cache (`O_DIRECT`): what is measured is the device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use crate::{latency, rate, say};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// How much is read or written in a row.
const SEQUENTIAL: u64 = 64 * MIB as u64;

/// How many single pages.
const SINGLE: u64 = 1000;

/// How many files are made and removed.
const FILES: u64 = 200;

/// Measures a block device of at least [`SEQUENTIAL`] bytes.
pub(crate) fn disk(device: &Path) -> io::Result<()> {
    let file = open(device)?;
    sequential(&file)?;
    pages(&file)
}

/// Measures a file system.
pub(crate) fn folder(folder: &Path) -> io::Result<()> {
    let path = folder.join("file");
    let file = open(&path)?;
    sequential(&file)?;
    pages(&file)?;
    fs::remove_file(path)?;

    let begin = Instant::now();
    for number in 0..FILES {
        let path = folder.join(number.to_string());
        File::create(&path)?;
        fs::metadata(&path)?;
        fs::remove_file(&path)?;
    }
    say("files", begin.elapsed().as_secs_f64() * 1e6 / FILES as f64);
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

fn sequential(file: &File) -> io::Result<()> {
    let mut memory = vec![0x5a; MIB + PAGE];
    let buffer = aligned(&mut memory, MIB);
    let offsets = || (0..SEQUENTIAL).step_by(MIB);
    let begin = Instant::now();
    for offset in offsets() {
        file.write_all_at(buffer, offset)?;
    }
    file.sync_all()?;
    say("write", rate(SEQUENTIAL, begin));
    let begin = Instant::now();
    for offset in offsets() {
        file.read_exact_at(buffer, offset)?;
    }
    say("read", rate(SEQUENTIAL, begin));
    Ok(())
}

fn pages(file: &File) -> io::Result<()> {
    let mut memory = vec![0xa5; 2 * PAGE];
    let page = aligned(&mut memory, PAGE);
    // Anywhere, and the same for all: a multiplicative walk through the pages.
    let offset = |number: u64| number * 7919 % (SEQUENTIAL / PAGE as u64) * PAGE as u64;
    say(
        "page-read",
        latency(SINGLE, |number| file.read_exact_at(page, offset(number)))?,
    );
    let written = latency(SINGLE / 4, |number| {
        file.write_all_at(page, offset(number))?;
        file.sync_data()
    })?;
    say("page-write", written);
    Ok(())
}

/// The part of `memory` that begins at a page and is `length` long.
fn aligned(memory: &mut [u8], length: usize) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(PAGE);
    &mut memory[start..start + length]
}
