//! Commands run to their end, with what they printed.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;

/// A command that ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Exit status; 128 + signal if a signal ended it, as a shell has it.
    pub status: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Standard output without the white space around it, of a command that must have succeeded.
    ///
    /// # Panics
    /// When the command failed.
    #[track_caller]
    pub fn output(&self) -> &str {
        assert_eq!(self.status, 0, "{self:#?}");
        self.stdout.trim()
    }
}

/// A command that goes on beside the test; killed when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts it with its output in `stdout`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command, stdout: Stdio) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end, with `stdin` as its input.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn command<A: AsRef<OsStr>>(program: &str, args: &[A], stdin: &[u8]) -> Finished {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {program}: {e}"));
    let mut pipe = child.stdin.take().expect("stdin is piped");
    let input = stdin.to_owned();
    // A command that ends before it read everything closes the pipe; that is its business.
    let writer = thread::spawn(move || drop(pipe.write_all(&input)));
    let output = child.wait_with_output().expect("wait for a child of ours");
    writer.join().expect("the writer does not panic");
    Finished {
        status: status(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
