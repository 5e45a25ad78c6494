//! `hull-vmm` under strace: which system calls each kind of thread makes once its filter holds.
//!
//! [`Trace`] has all threads from their start; [`AttachedTrace`] has one of a machine that runs, and takes
//! no time of those that start it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::{NamedTempFile, TempDir};

use crate::Process;

/// A program that becomes `hull-vmm`, with each thread's calls in a file of its own.
#[derive(Debug)]
pub struct Trace {
    folder: TempDir,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// One that nothing has run under yet.
    ///
    /// # Panics
    /// When its files cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/run").expect("make a folder in /run");
        // -D: strace is the child, and hull-vmm keeps its pid. Each machine has a folder: the pids that
        // strace appends to the files' names are of its own namespace, and so the same for all.
        let script = format!(
            "#!/bin/sh\nrun=$(/usr/bin/mktemp -d {}/run.XXXXXX) &&
            exec /usr/bin/strace -D -ff -o \"$run/thread\" /usr/lib/hull/hull-vmm \"$@\"\n",
            folder.path().display()
        );
        let this = Self { folder };
        fs::write(this.program(), script).expect("write a script");
        fs::set_permissions(this.program(), fs::Permissions::from_mode(0o755))
            .expect("make a script executable");
        this
    }

    /// Where the program is.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("hull-vmm")
    }

    /// The calls that all threads of a name's beginning, `vcpu`, `disk` or `card`, or without one all event
    /// loops, made under their filters so far.
    ///
    /// # Panics
    /// When the traces cannot be read.
    #[must_use]
    pub fn calls(&self, name: Option<&str>) -> BTreeSet<String> {
        let named = |before: &str, name: &str| before.contains(&format!("PR_SET_NAME, \"{name}"));
        let is_one = |before: &str| match name {
            Some(name) => named(before, name),
            None => ["vcpu", "disk", "card"]
                .iter()
                .all(|name| !named(before, name)),
        };
        let mut calls = BTreeSet::new();
        let runs = fs::read_dir(self.folder.path()).expect("list the runs");
        let files = runs
            .flatten()
            .filter_map(|run| fs::read_dir(run.path()).ok());
        for file in files.flatten().flatten() {
            let trace = fs::read_to_string(file.path()).expect("read a trace");
            let confined = trace.split_once("seccomp(SECCOMP_SET_MODE_FILTER");
            if let Some((before, after)) = confined
                && is_one(before)
            {
                calls.extend(after.lines().skip(1).filter_map(call_of));
            }
        }
        calls
    }
}

/// strace on one thread of a machine that runs.
#[derive(Debug)]
pub struct AttachedTrace {
    strace: Child,
    file: NamedTempFile,
}

impl AttachedTrace {
    /// Of the thread of `process` that is named `name`.
    ///
    /// # Panics
    /// When there is none of that name, or strace cannot be started.
    #[must_use]
    pub fn of(process: &Process, name: &str) -> Self {
        let threads = process.of_each_thread("Pid");
        let thread = (threads.get(name)).unwrap_or_else(|| panic!("no {name} in {threads:?}"));
        let file = NamedTempFile::new().expect("make a file");
        let strace = Command::new("strace")
            .args(["-p", thread, "-o"])
            .arg(file.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("start strace; is it installed?");
        Self { strace, file }
    }

    /// The calls it has made so far since strace came.
    ///
    /// # Panics
    /// When the trace cannot be read.
    #[must_use]
    pub fn calls(&self) -> BTreeSet<String> {
        let trace = fs::read_to_string(self.file.path()).expect("read a trace");
        trace.lines().filter_map(call_of).collect()
    }
}

impl Drop for AttachedTrace {
    fn drop(&mut self) {
        // It fails only when strace has ended, with its thread.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The name of the call in a line of strace's.
fn call_of(line: &str) -> Option<String> {
    Some(line.split_once('(')?.0.to_owned())
}
