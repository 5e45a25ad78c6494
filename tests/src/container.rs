//! Containers through `ctr`, on Hull or, to compare, on runc.

use std::path::Path;

use crate::command::{Finished, command};
use crate::host::Host;
use crate::process::Process;
use crate::{RUNTIME, wait};

/// The image that `tests/images/build` makes.
pub const IMAGE: &str = "localhost/hull/busybox:latest";

/// A container to be run, and then one that runs.
#[derive(Debug)]
pub struct Container<'a> {
    host: &'a Host,
    name: &'a str,
    runtime: &'a str,
    options: Vec<String>,
    image: Vec<String>,
    stdin: &'a [u8],
}

impl<'a> Container<'a> {
    pub(crate) fn new(host: &'a Host, name: &'a str) -> Self {
        let image = vec![IMAGE.to_owned()];
        Self {
            host,
            name,
            runtime: RUNTIME,
            options: Vec::new(),
            image,
            stdin: b"",
        }
    }

    /// Runs it on another runtime.
    #[must_use]
    pub fn runtime(mut self, runtime: &'a str) -> Self {
        self.runtime = runtime;
        self
    }

    /// Adds options of `ctr run`.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options
            .extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Uses another image, or with nothing none at all (`--rootfs`, `--config`).
    #[must_use]
    pub fn image(mut self, image: &[&str]) -> Self {
        self.image = image.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Has it join namespaces of another, which runs, by their types.
    ///
    /// # Panics
    /// When that one does not run.
    #[must_use]
    pub fn joining(mut self, other: &Self, kinds: &[&str]) -> Self {
        let pid = other.pid();
        self.options.extend(kinds.iter().map(|&kind| {
            let file = if kind == "network" { "net" } else { kind };
            format!("--with-ns={kind}:/proc/{pid}/ns/{file}")
        }));
        self
    }

    /// Gives `ctr` this input.
    #[must_use]
    pub fn stdin(mut self, stdin: &'a [u8]) -> Self {
        self.stdin = stdin;
        self
    }

    /// Runs a command in it to its end and removes it (`ctr run --rm`).
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Finished {
        command("ctr", &self.words(&["--rm"], args), self.stdin)
    }

    /// As [`Container::run`], on a terminal of its own.
    #[must_use]
    pub fn run_on_terminal(&self, args: &[&str]) -> Finished {
        self.on_terminal(&["--rm", "--tty"], args)
    }

    /// As [`Container::start`], on a terminal, which `ctr` leaves as it is.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start_on_terminal(self, args: &[&str]) -> Self {
        let started = self.on_terminal(&["--detach", "--tty"], args);
        assert_eq!(started.status, 0, "{started:#?}");
        self
    }

    fn on_terminal(&self, mode: &[&str], args: &[&str]) -> Finished {
        let words: Vec<String> = self
            .words(mode, args)
            .into_iter()
            .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
            .collect();
        let line = format!("ctr {}", words.join(" "));
        command(
            "script",
            &["--quiet", "--return", "--command", &line, "/dev/null"],
            self.stdin,
        )
    }

    /// Starts a command in it and leaves it running (`ctr run --detach`).
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(self, args: &[&str]) -> Self {
        let started = self.try_start(args);
        assert_eq!(started.status, 0, "{started:#?}");
        self
    }

    /// As [`Container::start`], whatever comes of it; `ctr` leaves a task whose Start has failed.
    #[must_use]
    pub fn try_start(&self, args: &[&str]) -> Finished {
        command("ctr", &self.words(&["--detach"], args), self.stdin)
    }

    /// Runs a further command in it (`ctr task exec`).
    #[must_use]
    pub fn exec(&self, exec_id: &str, args: &[&str]) -> Finished {
        let words = [&["task", "exec", "--exec-id", exec_id, self.name], args].concat();
        command("ctr", &words, self.stdin)
    }

    /// Runs a further command in it that goes on alone, its output in a file of the host
    /// (`ctr task exec --detach --log-uri`).
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn exec_detached(&self, exec_id: &str, output: &Path, args: &[&str]) {
        let uri = format!("file://{}", output.display());
        let options = ["--detach", "--log-uri", &uri, "--exec-id", exec_id];
        let words = [&["task", "exec"], &options[..], &[self.name], args].concat();
        let started = command("ctr", &words, b"");
        assert_eq!(started.status, 0, "{started:#?}");
    }

    /// The line of `ctr task ls` that tells of it.
    #[must_use]
    pub fn listed(&self) -> Option<Vec<String>> {
        let list = self.host.ctr(&["task", "ls"]);
        let line = list
            .output()
            .lines()
            .find(|line| line.split_whitespace().next() == Some(self.name))?;
        Some(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The process that containerd is told of.
    ///
    /// # Panics
    /// When it has no task.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let line = self.listed().expect("it is listed");
        line[1].parse().expect("a pid is a number")
    }

    /// The virtual machine that it is in, if it is that one's first.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn vmm(&self) -> Process {
        let shim = Process::of(&Process::of(&self.pid().to_string()).status("PPid"));
        let mut children = shim.children().into_iter();
        let vmm = children.find(|child| child.status("Name") == "hull-vmm");
        vmm.expect("a container has a machine")
    }

    /// Waits until its init is over.
    #[track_caller]
    pub fn wait_until_stopped(&self) {
        wait::until("the container stops", || {
            self.listed()
                .filter(|line| line.last().is_some_and(|state| state == "STOPPED"))
        });
    }

    /// Waits until containerd has given its task up, because the shim is gone.
    #[track_caller]
    pub fn wait_until_given_up(&self) {
        wait::until("containerd gives the task up", || {
            self.listed()
                .is_none_or(|line| line[2] == "STOPPED")
                .then_some(())
        });
    }

    /// Sends its init a signal (`ctr task kill`).
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        let killed = self.host.ctr(&["task", "kill", "-s", signal, self.name]);
        assert_eq!(killed.status, 0, "{killed:#?}");
    }

    /// Kills its init and removes it; returns the exit status that `ctr` reports.
    ///
    /// # Panics
    /// As [`Container::remove`].
    #[track_caller]
    pub fn end(self) -> i32 {
        self.kill("SIGKILL");
        self.wait_until_stopped();
        self.remove()
    }

    /// Deletes its stopped task and the container; returns the exit status that `ctr` reports.
    ///
    /// # Panics
    /// When one of them cannot be deleted.
    #[track_caller]
    pub fn remove(self) -> i32 {
        let deleted = self.host.ctr(&["task", "rm", self.name]);
        let removed = self.host.ctr(&["container", "rm", self.name]);
        assert_eq!(
            (deleted.status, removed.status),
            (0, 0),
            "{deleted:#?} {removed:#?}"
        );
        // ctr says nothing of a task that ended well, and else: `exit with non-zero exit code 7"`.
        let code = deleted.stderr.split("non-zero exit code ").nth(1);
        let digits = code.map(|text| {
            text.chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
        });
        digits.map_or(0, |digits| {
            digits.parse().expect("an exit code is a number")
        })
    }

    fn words(&self, mode: &[&str], args: &[&str]) -> Vec<String> {
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        [
            owned(&["run", "--runtime", self.runtime]),
            owned(mode),
            self.options.clone(),
            self.image.clone(),
            owned(&[self.name]),
            owned(args),
        ]
        .concat()
    }
}
