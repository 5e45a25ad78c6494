//! What is asked of a disk's file on behalf of a chain.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::request::{Range, Segment, length};
use crate::backend::image::Image;
use crate::memory::Ram;
use crate::report;

/// Most bytes that are made zero at once. Where they are written one by one, a disk of 100 MB/s takes less than
/// a reset waits.
const PIECE: usize = 64 << 20;

/// What is asked of a file.
#[derive(Debug)]
pub(super) enum Operation {
    /// Fill the segments from byte `offset` on.
    Read { offset: u64 },
    /// Write the segments to byte `offset`; make them durable at once when `through`.
    Write { offset: u64, through: bool },
    /// Make earlier writes durable.
    Flush,
    /// Give the ranges' space back.
    Discard(Vec<Range>),
    /// Make the ranges read as zeroes.
    WriteZeroes(Vec<Range>),
}

/// An operation on behalf of a chain. It owns references to the file and the memory it works on.
pub(super) struct Job {
    pub(super) head: u16,
    pub(super) operation: Operation,
    pub(super) image: Arc<Image>,
    pub(super) ram: Ram,
    pub(super) segments: Vec<Segment>,
    /// Nobody waits for it any more: what is left of its ranges stays as it is.
    pub(super) forgotten: Arc<AtomicBool>,
}

/// What came of it: the bytes written into guest memory, unless the file failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) head: u16,
    pub(super) written: Option<u32>,
}

impl Job {
    /// Carries it out, however long that takes.
    pub(super) fn run(self) -> Done {
        let written = match self.carry_out() {
            Ok(written) => Some(written),
            Err(error) => {
                report::warn(format_args!("disk {:?}: {error}", self.operation));
                None
            }
        };
        Done {
            head: self.head,
            written,
        }
    }

    fn carry_out(&self) -> io::Result<u32> {
        let image = &self.image;
        match &self.operation {
            Operation::Read { offset } => {
                image.read_at(&self.ram, &self.segments, *offset)?;
                Ok(u32::try_from(length(&self.segments)).expect("at most REQUEST_MAX"))
            }
            Operation::Write { offset, through } => {
                image.write_at(&self.ram, &self.segments, *offset)?;
                if *through {
                    image.sync()?;
                }
                Ok(0)
            }
            Operation::Flush if image.is_read_only() => Ok(0),
            Operation::Flush => image.sync().map(|()| 0),
            Operation::Discard(ranges) => (ranges.iter())
                .take_while(|_| self.is_wanted())
                .try_for_each(|range| image.discard(range.offset, range.length))
                .map(|()| 0),
            Operation::WriteZeroes(ranges) => (ranges.iter().flat_map(pieces))
                .take_while(|_| self.is_wanted())
                .try_for_each(|piece| image.write_zeroes(piece.offset, piece.length, piece.unmap))
                .map(|()| 0),
        }
    }

    fn is_wanted(&self) -> bool {
        // Orders nothing else: whoever forgets it waits for its end under the worker's lock.
        !self.forgotten.load(Ordering::Relaxed)
    }
}

/// The range in pieces, none larger than [`PIECE`].
fn pieces(range: &Range) -> impl Iterator<Item = Range> {
    let Range {
        offset,
        length,
        unmap,
    } = *range;
    let end = offset + length;
    (offset..end).step_by(PIECE).map(move |offset| Range {
        offset,
        length: (end - offset).min(PIECE as u64),
        unmap,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory;

    #[test]
    fn a_range_is_cut_into_pieces_that_are_it() {
        const WHOLE: u64 = PIECE as u64;
        for (length, expected) in [
            (0, vec![]),
            (512, vec![(512, 512)]),
            (WHOLE, vec![(512, WHOLE)]),
            (WHOLE + 512, vec![(512, WHOLE), (512 + WHOLE, 512)]),
        ] {
            let range = Range {
                offset: 512,
                length,
                unmap: true,
            };
            let found: Vec<_> = pieces(&range).map(|it| (it.offset, it.length)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_left_of_a_forgotten_job_is_not_done() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1024], 0).unwrap();
        let image = Image::new(file.try_clone().unwrap().into(), false).unwrap();
        let image = Arc::new(image);
        let range = || Range {
            offset: 0,
            length: 512,
            unmap: false,
        };
        let run = |operation, forgotten: bool| {
            Job {
                head: 0,
                operation,
                image: Arc::clone(&image),
                ram: memory::allocate(&[(GuestAddress(0), 0x1000)]).unwrap(),
                segments: Vec::new(),
                forgotten: Arc::new(forgotten.into()),
            }
            .run()
        };
        let first = || {
            let mut byte = [0];
            file.read_exact_at(&mut byte, 0).unwrap();
            byte
        };
        run(Operation::WriteZeroes(vec![range()]), true);
        run(Operation::Discard(vec![range()]), true);
        assert_eq!(first(), [7]);
        run(Operation::WriteZeroes(vec![range()]), false);
        assert_eq!(first(), [0]);
    }
}
