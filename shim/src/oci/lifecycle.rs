//! A container's life: create, run, start, kill, delete.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use oci_spec::runtime::{Process, Spec};

use super::args::{CreateArgs, DeleteArgs, KillArgs, RunArgs};
use super::error::OciError;
use super::folder::{Folder, Record};
use super::guard::Guard;
use super::monitor::{self, Followed};
use super::relay::{Pipes, Streams};
use super::report;
use super::task::{self, SIGKILL, STOPPED, Task};
use super::terminal::{self, Raw};
use crate::bundle;
use crate::config::Config;
use crate::error::chain;

/// A container that was created, and that nobody follows yet.
struct Created {
    folder: Folder,
    record: Record,
    task: Task,
    terminal: bool,
    /// In its network namespace.
    pid: u32,
    /// Until somebody follows it.
    guard: Guard,
}

/// `create`.
pub(super) async fn create(root: &Path, debug: bool, args: &CreateArgs) -> Result<(), OciError> {
    let created = make(root, debug, args, true).await?;
    let handed_over = hand_over(&created, args);
    or_discard(&created.folder, handed_over).await
}

/// `run`; returns the container's exit status.
pub(super) async fn run(root: &Path, debug: bool, args: &RunArgs) -> Result<u8, OciError> {
    let created = make(root, debug, &args.create, args.detach).await?;
    if args.detach {
        let started = match hand_over(&created, &args.create) {
            Ok(()) => created.task.start("").await,
            Err(error) => Err(error),
        };
        return or_discard(&created.folder, started).await.map(|()| 0);
    }
    let folder = created.folder.clone();
    let followed = follow(created, &args.create).await;
    let status = or_discard(&folder, followed).await?;
    if !args.keep {
        discard(&folder).await?;
    }
    Ok(status)
}

async fn follow(created: Created, args: &CreateArgs) -> Result<u8, OciError> {
    let Created {
        folder,
        task,
        terminal,
        pid,
        guard,
        ..
    } = created;
    let _raw = terminal.then(Raw::standard_input).transpose()?;
    let streams = Streams::own()?;
    let followed = Followed::new(&folder, task.clone(), "", terminal, streams, guard)?;
    write_pid_file(args.pid_file.as_deref(), pid)?;
    task.start("").await?;
    Ok(followed.until_its_end().await)
}

/// Creates a container; if that fails, nothing is left of it.
async fn make(
    root: &Path,
    debug: bool,
    args: &CreateArgs,
    detached: bool,
) -> Result<Created, OciError> {
    refuse_descriptors(args.preserve_fds)?;
    let bundle = absolute(args.bundle.as_deref().unwrap_or(Path::new(".")))?;
    let spec = bundle::load(&bundle)?;
    let terminal = spec.process().as_ref().and_then(Process::terminal);
    let terminal = terminal.unwrap_or_default();
    check_console(terminal, detached, args.console_socket.is_some())?;
    let record = record(&spec, &bundle);
    let folder = Folder::create(root, &args.id, &bundle, debug)?;
    let created = async {
        let guard = Guard::start(&folder, "", true)?;
        let pipes = Pipes::of(&folder, "", terminal);
        pipes.make()?;
        let task = Task::start_shim(&folder).await?;
        let pid = task
            .create(&bundle.display().to_string(), &pipes.paths())
            .await?;
        folder.note(&record)?;
        Ok((task, pid, guard))
    };
    let (task, pid, guard) = or_discard(&folder, created.await).await?;
    Ok(Created {
        folder,
        record,
        task,
        terminal,
        pid,
        guard,
    })
}

fn record(spec: &Spec, bundle: &Path) -> Record {
    Record {
        oci_version: spec.version().clone(),
        bundle: bundle.to_owned(),
        rootfs: bundle::host_root(spec, bundle, false),
        created: report::now(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        process: None,
    }
}

/// Has a monitor follow the container, and tells its pid.
fn hand_over(created: &Created, args: &CreateArgs) -> Result<(), OciError> {
    let streams = detached_streams(args.console_socket.as_deref())?;
    let (folder, network) = (&created.folder, Some(created.pid));
    let process = monitor::detach(folder, "", created.terminal, &streams, network)?;
    folder.note(&Record {
        process: Some(process.to_string()),
        ..created.record.clone()
    })?;
    write_pid_file(args.pid_file.as_deref(), process.pid)
}

/// The streams of a process that this program leaves: a new terminal, or its own.
pub(super) fn detached_streams(console: Option<&Path>) -> Result<Streams, OciError> {
    let Some(socket) = console else {
        return Streams::own();
    };
    let terminal = terminal::send(socket)?;
    let clone = |terminal: &OwnedFd| {
        let clone = terminal.try_clone();
        clone.map_err(OciError::kernel("duplicate the terminal"))
    };
    Ok(Streams {
        input: clone(&terminal)?,
        output: clone(&terminal)?,
        error: terminal,
    })
}

/// Whether what is said about a terminal goes together.
pub(super) fn check_console(terminal: bool, detached: bool, console: bool) -> Result<(), OciError> {
    let wrong = match (terminal, detached, console) {
        (true, true, false) => {
            "cannot allocate tty if runc will detach without setting console socket"
        }
        (false, _, true) | (true, false, true) => {
            "cannot use console socket if runc will not detach or allocate tty"
        }
        _ => return Ok(()),
    };
    Err(OciError::Refused(wrong.replace("runc", "hull oci")))
}

/// Descriptors of the host are of no use in a guest.
pub(super) fn refuse_descriptors(count: u32) -> Result<(), OciError> {
    match count {
        0 => Ok(()),
        _ => Err(OciError::Refused(
            "--preserve-fds is not supported: descriptors of the host are of no use in the guest"
                .into(),
        )),
    }
}

/// Writes a pid, all at once: who waits for the file reads a whole one.
pub(super) fn write_pid_file(path: Option<&Path>, pid: u32) -> Result<(), OciError> {
    let Some(path) = path else {
        return Ok(());
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    std::fs::write(&new, pid.to_string())
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(OciError::file("write", path))
}

/// `start`.
pub(super) async fn start(root: &Path, id: &str) -> Result<(), OciError> {
    let folder = Folder::open(root, id)?;
    folder.record()?;
    let stopped = || OciError::Refused("cannot start a container that has stopped".to_owned());
    let task = Task::connect(&folder).await.ok_or_else(stopped)?;
    match task.state().await?.status {
        "created" => task.start("").await,
        "stopped" => Err(stopped()),
        _ => Err(OciError::Refused(
            "cannot start an already running container".to_owned(),
        )),
    }
}

/// `kill`.
pub(super) async fn kill(root: &Path, args: &KillArgs) -> Result<(), OciError> {
    let signal = signal(&args.signal)?;
    let task = running(root, &args.id).await?;
    task.kill("", signal, args.all).await
}

/// `pause`.
pub(super) async fn pause(root: &Path, id: &str) -> Result<(), OciError> {
    running(root, id).await?.pause().await
}

/// `resume`.
pub(super) async fn resume(root: &Path, id: &str) -> Result<(), OciError> {
    running(root, id).await?.resume().await
}

/// The shim of a container whose machine runs.
pub(super) async fn running(root: &Path, id: &str) -> Result<Task, OciError> {
    let folder = Folder::open(root, id)?;
    folder.record()?;
    Task::connect(&folder).await.ok_or(OciError::NotRunning)
}

/// The number of a signal that is given by number or by name, with or without SIG.
fn signal(text: &str) -> Result<u32, OciError> {
    /// The last of the real-time signals.
    const LAST: u32 = 64;
    let unknown = || OciError::Signal(text.to_owned());
    if let Ok(number) = text.parse() {
        return if (1..=LAST).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let name = text.to_ascii_uppercase();
    let name = format!("SIG{}", name.trim_start_matches("SIG"));
    let signal: Signal = name.parse().map_err(|_| unknown())?;
    Ok((signal as i32).cast_unsigned())
}

/// `delete`.
pub(super) async fn delete(root: &Path, args: &DeleteArgs) -> Result<(), OciError> {
    let folder = match Folder::open(root, &args.id) {
        Err(OciError::NoContainer) if args.force => return Ok(()),
        folder => folder?,
    };
    if !args.force {
        folder.record()?;
        let state = match Task::connect(&folder).await {
            Some(task) => task.state().await?,
            None => STOPPED,
        };
        if let status @ ("running" | "paused") = state.status {
            let id = args.id.clone();
            return Err(OciError::NotStopped { id, status });
        }
    }
    discard(&folder).await
}

/// Passes a result on; when it is an error, nothing is left of the container.
async fn or_discard<T>(folder: &Folder, result: Result<T, OciError>) -> Result<T, OciError> {
    if result.is_err() {
        // The first error is the one to tell.
        let _ = discard(folder).await;
    }
    result
}

/// Ends a container, whatever it does, and removes everything that was made for it.
pub(super) async fn discard(folder: &Folder) -> Result<(), OciError> {
    let ended = match Task::connect(folder).await {
        None => Err(OciError::NotRunning),
        Some(task) => end(&task, folder).await,
    };
    // A shim that is gone, or that knows of no such container, has not cleaned up.
    if let Err(OciError::NotRunning | OciError::Lost(_)) = ended {
        task::clean_up(folder)?;
    } else {
        ended?;
    }
    folder.remove()
}

async fn end(task: &Task, folder: &Folder) -> Result<(), OciError> {
    let (state, wrong) = Config::state_to_clean_up();
    if let Some(error) = wrong {
        report::warning(&chain(&error));
    }
    if task.state().await? != STOPPED && task.kill("", SIGKILL, true).await.is_ok() {
        task.wait("").await?;
    }
    let deleted = task.delete("").await;
    task.shut_down(&state, &folder.namespace).await;
    deleted
}

fn absolute(path: &Path) -> Result<PathBuf, OciError> {
    path.canonicalize().map_err(OciError::file("find", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_number_or_a_name() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("34", 34),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "-1", "SIGTIDE", ""] {
            assert!(matches!(signal(text), Err(OciError::Signal(_))), "{text}");
        }
    }

    #[test]
    fn a_detached_terminal_needs_a_socket_and_nothing_else_does() {
        for (terminal, detached, console, right) in [
            (false, false, false, true),
            (false, true, false, true),
            (true, false, false, true),
            (true, true, true, true),
            (true, true, false, false),
            (true, false, true, false),
            (false, true, true, false),
        ] {
            let checked = check_console(terminal, detached, console);
            assert_eq!(checked.is_ok(), right, "{terminal} {detached} {console}");
        }
    }

    #[test]
    fn a_pid_file_is_there_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        write_pid_file(Some(&path), 7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "7");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
