//! What the guest's kernel says last: memory of the guest's that Linux' ramoops writes when it panics
//! (Documentation/admin-guide/ramoops.rst), and that is read when the machine is over. So a panic can be
//! told from a reset, and has a reason, without a console.
//!
//! Threat: none of it is to be trusted. It is read once, after the vCPUs have stopped, and what leaves here
//! is one line of text, cut and cleaned.

use vm_memory::{Bytes, GuestAddress};
use vmm_control::ExitReason;

use crate::memory::Ram;

/// Bytes of it: a power of two with room for Linux' last 10 KiB (CONFIG_PSTORE_DEFAULT_KMSG_BYTES), and a
/// multiple of any host's pages, without which KVM has no memory.
pub(super) const LEN: usize = 64 << 10;

/// `struct persistent_ram_buffer` (fs/pstore/ram_core.c): what marks one, where its text begins, and how
/// long that is.
const SIGNATURE: u32 = 0x4347_4244;
const HEADER_LEN: usize = 12;

/// Most bytes of the line that is told.
const MAX_LINE: usize = 200;

/// What precedes the reason of a panic (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";

/// What precedes the exit code of the first process in the reason of the panic that its end is
/// (kernel/exit.c): 8 hexadecimal digits, as wait(2) has them.
const INIT_ENDED: &str = "Attempted to kill init! exitcode=0x";

/// Where the guest's kernel writes.
#[derive(Debug)]
pub(super) struct LastWords {
    pages: Ram,
    start: GuestAddress,
}

impl LastWords {
    /// Those at `start`, where `pages` has [`LEN`] bytes.
    pub(super) fn new(pages: Ram, start: GuestAddress) -> Self {
        Self { pages, start }
    }

    /// Tells the kernel where to write, in words of its command line: one record, of panics alone.
    pub(super) fn cmdline(&self) -> String {
        format!(
            "ramoops.mem_address={:#x} ramoops.mem_size={LEN:#x} ramoops.record_size={LEN:#x} \
             ramoops.console_size=0 ramoops.ftrace_size=0 ramoops.pmsg_size=0 ramoops.dump_oops=0",
            self.start.0
        )
    }

    /// How the kernel ended, if it has said so.
    pub(super) fn read(&self) -> Option<ExitReason> {
        let mut bytes = [0; LEN];
        self.pages.read_slice(&mut bytes, self.start).ok()?;
        let (header, text) = bytes.split_at(HEADER_LEN);
        let word = |at: usize| {
            let word = header[at..at + 4].try_into();
            u32::from_le_bytes(word.expect("four bytes"))
        };
        let len = usize::try_from(word(8)).ok()?;
        if word(0) != SIGNATURE || len == 0 {
            return None;
        }
        let why = reason(&String::from_utf8_lossy(&text[..len.min(text.len())]))?;
        Some(init_ended(&why).map_or(ExitReason::Panicked(why), ExitReason::InitEnded))
    }
}

/// The reason in a record: what follows [`PANIC`], without what a line may hide.
fn reason(record: &str) -> Option<String> {
    let (_, after) = record.split_once(PANIC)?;
    let line = after.lines().next().unwrap_or_default();
    // The kernel's own words are ASCII; others may turn a terminal's text around.
    let clean = |c: char| {
        if c == ' ' || c.is_ascii_graphic() {
            c
        } else {
            '?'
        }
    };
    let line = line.trim().chars().map(clean).take(MAX_LINE);
    Some(line.collect())
}

/// The exit code of the first process, or 128 and its signal, if that is what a panic is about.
fn init_ended(why: &str) -> Option<i32> {
    let status = why.strip_prefix(INIT_ENDED)?.get(..8)?;
    let status = i32::from_str_radix(status, 16).ok()?;
    Some(match status & 0x7f {
        0 => status >> 8 & 0xff,
        signal => 128 + signal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const START: GuestAddress = GuestAddress(0x4000);

    fn said(signature: u32, len: u32, text: &[u8]) -> Option<ExitReason> {
        let ram = memory::allocate(&[(START, LEN)]).unwrap();
        ram.write_obj(signature, START).unwrap();
        ram.write_obj(len, GuestAddress(START.0 + 8)).unwrap();
        let at = GuestAddress(START.0 + 12);
        ram.write_slice(text, at).unwrap();
        LastWords::new(ram, START).read()
    }

    #[test]
    fn a_panic_has_its_reason() {
        let text =
            b"====7.0-D\nPanic#1 Part1\n<0>[    1.0] Kernel panic - not syncing: no init found\n\
            <4>[    1.1] CPU: 0\n";
        let len = u32::try_from(text.len()).unwrap();
        let reason = ExitReason::Panicked("no init found".to_owned());
        assert_eq!(said(SIGNATURE, len, text), Some(reason));
        // As it was never written, and as it is when it was made ready.
        assert_eq!(said(0, 0, b""), None);
        assert_eq!(said(SIGNATURE, 0, text), None);
        assert_eq!(said(SIGNATURE, len, b"nothing of the kind"), None);
    }

    #[test]
    fn the_end_of_the_first_process_has_its_code() {
        let said = |status| {
            let text = format!("{PANIC}{INIT_ENDED}{status}\n");
            said(
                SIGNATURE,
                u32::try_from(text.len()).unwrap(),
                text.as_bytes(),
            )
        };
        assert_eq!(said("00000700"), Some(ExitReason::InitEnded(7)));
        assert_eq!(said("0000000b"), Some(ExitReason::InitEnded(139)));
        for other in ["", "1", "0000000g", "é0000007", "ffffffff"] {
            assert!(
                matches!(said(other), Some(ExitReason::Panicked(_))),
                "{other}"
            );
        }
    }

    #[test]
    fn what_a_guest_makes_up_is_one_short_line() {
        let text = [
            PANIC.as_bytes(),
            b"a\x1b[2Jb\xff",
            &[0xc3, 0xa9].repeat(400),
        ]
        .concat();
        for len in [u32::try_from(text.len()).unwrap(), u32::MAX] {
            let Some(ExitReason::Panicked(line)) = said(SIGNATURE, len, &text) else {
                panic!("it is a panic");
            };
            assert!(line.starts_with("a?[2Jb??"), "{line}");
            assert!(line.len() <= MAX_LINE && line.is_ascii(), "{line}");
        }
    }

    #[test]
    fn the_kernel_is_told_where_to_write() {
        let ram = memory::allocate(&[(START, LEN)]).unwrap();
        let words = LastWords::new(ram, START).cmdline();
        assert!(words.starts_with("ramoops.mem_address=0x4000 ramoops.mem_size=0x10000 "));
    }
}
