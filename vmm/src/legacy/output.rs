//! Where the console's bytes go: a file, a pipe or a terminal, of which none may stop the guest.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most bytes a guest may print: a file must not fill the host's disk.
const LIMIT: u64 = 64 << 20;

/// The last thing that is printed when that is reached.
const END: &[u8] = b"\r\n[hull-vmm: the console ends here, after 64 MiB]\r\n";

/// How long a reader may keep the guest waiting, once; then bytes are lost until it reads again.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// The console's output. It takes everything: what the reader does not want is lost.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    left: u64,
    stalled: bool,
}

impl Output {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            left: LIMIT,
            stalled: false,
        }
    }

    /// Whether a byte can be written without waiting, for which the reader gets a moment's time. A
    /// file is always ready, and so is a pipe that nobody will read any more.
    fn is_ready(&mut self) -> bool {
        let patience = if self.stalled {
            Timespec::default()
        } else {
            PATIENCE
        };
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        // Interrupted: a vCPU that is being stopped does not wait.
        self.stalled = !matches!(poll(&mut fds, Some(&patience)), Ok(1..));
        !self.stalled
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if self.left > 0 && self.is_ready() {
            self.left = self.left.saturating_sub(length);
            let now = if self.left > 0 { bytes } else { END };
            let _ = self.file.write(now);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn bytes_arrive_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let mut output = Output::new(file.try_clone().unwrap().into());
        output.write_all(b"ti").unwrap();
        output.write_all(b"de").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "tide");
    }

    #[test]
    fn a_reader_that_does_not_read_costs_one_moment_and_then_bytes() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(writer.into());
        let start = Instant::now();
        for _ in 0..100_000 {
            output.write_all(b"x").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(10));

        // It is heard again as soon as it reads.
        let mut bytes = vec![0; 1 << 20];
        let waiting = reader.read(&mut bytes).unwrap();
        assert!(waiting < 100_000);
        output.write_all(b"again").unwrap();
        drop(output);
        reader.read_to_end(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"again"));
    }

    #[test]
    fn a_reader_that_is_gone_does_not_stop_the_guest() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Output::new(writer.into()).write_all(b"tide").unwrap();
    }

    #[test]
    fn a_console_ends_at_its_limit_and_says_so() {
        let mut file = tempfile::tempfile().unwrap();
        let mut output = Output::new(file.try_clone().unwrap().into());
        output.left = 3;
        for byte in [b"a", b"b", b"c", b"d"] {
            output.write_all(byte).unwrap();
        }
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.as_bytes(), [b"ab", END].concat());
    }
}
