//! What is asked of a disk's file on behalf of a chain.

use std::io;
use std::sync::Arc;

use super::request::{Range, Segment, length};
use crate::backend::image::Image;
use crate::memory::Ram;
use crate::report;

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
                .try_for_each(|range| image.discard(range.offset, range.length))
                .map(|()| 0),
            Operation::WriteZeroes(ranges) => (ranges.iter())
                .try_for_each(|range| image.write_zeroes(range.offset, range.length, range.unmap))
                .map(|()| 0),
        }
    }
}
