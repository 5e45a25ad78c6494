//! Carries out a `Plan`: from nothing to an init that waits to be started, and back.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::block_volumes;
use super::device_nodes;
use super::diary;
use super::launch::Launcher;
use super::namespaces::UserNamespace;
use super::plan::{self, Plan};
use super::user_namespace;
use super::volumes;
use super::working_directory;
use crate::cgroup::{Cgroup, CgroupError};
use crate::error_chain;
use crate::host::Host;
use crate::network::Namespace;
use crate::operation::{self, OperationError};
use crate::reaper::{Exit, Reaper};
use crate::stdio::{Ports, StdioError, Streams, Terminal};
use crate::sys::{self, ProgramKind};

/// libcontainer's state, a directory for each container.
const CONTAINERS: &str = "/run/hull/containers";
/// Sockets on which terminals are received.
pub(super) const CONSOLES: &str = "/run/hull/consoles";

/// How long a failed process may take to leave its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Its streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A file the agent keeps for it.
    #[error("{action} {}", path.display())]
    File {
        /// `create`, `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The guest is out of something.
    #[error("create a pipe")]
    Pipe(#[source] io::Error),
    /// The container's network.
    #[error("bring up the loopback interface of the container")]
    Loopback(#[source] io::Error),
    /// libcontainer's failure.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// libcontainer's failure, with what it logged first.
    #[error("{operation}: {cause}")]
    Diagnosed {
        /// The first error it met.
        cause: String,
        /// What became of it.
        operation: OperationError,
    },
    /// The launcher's, in the words users know.
    #[error("{0}")]
    Launch(String),
}

/// Why something of a container is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its disks.
    #[error(transparent)]
    BlockVolumes(#[from] OperationError),
    /// A file the agent kept for it.
    #[error("remove {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An init that waits.
pub struct Created {
    /// In the agent's pid namespace.
    pub pid: i32,
    /// How it ends.
    pub exit: oneshot::Receiver<Exit>,
    /// What its launcher says.
    pub report: Report,
    /// If it has one.
    pub terminal: Option<Terminal>,
}

/// What a process says on its way to its program; the agent's ends.
pub struct Report {
    /// The launcher's last words. Their end without a word is success.
    words: pipe::Receiver,
    /// libcontainer's account (see `diary`).
    diary: pipe::Receiver,
}

/// The process's ends.
pub struct Reporter {
    words: OwnedFd,
    diary: OwnedFd,
}

impl Report {
    /// Two pipes.
    ///
    /// # Errors
    /// `Pipe`.
    pub fn open() -> Result<(Self, Reporter), CreateError> {
        let open = || {
            let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            io::Result::Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
        };
        let (words, their_words) = open().map_err(CreateError::Pipe)?;
        let (diary, their_diary) = open().map_err(CreateError::Pipe)?;
        let reporter = Reporter {
            words: their_words,
            diary: their_diary,
        };
        Ok((Self { words, diary }, reporter))
    }

    /// Waits until the program runs or the launcher has given up.
    ///
    /// # Errors
    /// `Launch` with the reason.
    pub async fn outcome(mut self) -> Result<(), CreateError> {
        let words = read(&mut self.words).await.map_err(CreateError::Pipe)?;
        if words.is_empty() {
            Ok(())
        } else {
            Err(CreateError::Launch(words))
        }
    }

    /// The best of three reasons why an operation failed: the launcher's, libcontainer's account,
    /// or what the operation itself has said.
    pub async fn reason_or(mut self, operation: OperationError) -> CreateError {
        let both = async { (read(&mut self.words).await, read(&mut self.diary).await) };
        let (words, diary) = match tokio::time::timeout(LAST_WORDS, both).await {
            Ok((words, diary)) => (words.unwrap_or_default(), diary.unwrap_or_default()),
            Err(_) => Default::default(),
        };
        // Some of libcontainer's errors do bring their cause along.
        let complete = operation.to_string().contains("(os error ");
        match diary.lines().next() {
            _ if !words.is_empty() => CreateError::Launch(words),
            Some(cause) if !complete => CreateError::Diagnosed {
                cause: cause.to_owned(),
                operation,
            },
            _ => operation.into(),
        }
    }
}

impl Reporter {
    /// The descriptors to keep open in the process.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.words.as_fd(), self.diary.as_fd()]
    }

    /// For the launcher. Called in an operation.
    pub fn words(&self) -> Result<OwnedFd, String> {
        self.words.try_clone().map_err(|error| error.to_string())
    }
}

async fn read(pipe: &mut pipe::Receiver) -> io::Result<String> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Creates container `id`. Nothing is left of it if that fails.
///
/// # Errors
/// All of `CreateError`.
pub async fn create(
    reaper: &Reaper,
    host: Host,
    id: &str,
    plan: &Plan,
    ports: Ports,
) -> Result<Created, CreateError> {
    let created = try_create(reaper, host, id, plan, ports).await;
    if created.is_err()
        && let Err(error) = remove(reaper, id).await
    {
        log::error!("clean up after container {id}: {}", error_chain(&error));
    }
    created
}

async fn try_create(
    reaper: &Reaper,
    host: Host,
    id: &str,
    plan: &Plan,
    ports: Ports,
) -> Result<Created, CreateError> {
    let bundle = write_bundle(id, plan)?;
    make_directory(Path::new(CONTAINERS))?;
    make_directory(Path::new(CONSOLES))?;
    let streams = Streams::connect(host, ports, Path::new(CONSOLES), &unique_name()).await?;
    let (report, reporter) = Report::open()?;
    if let UserNamespace::Own(maps) = &plan.user_namespace {
        user_namespace::create(reaper, id, maps).await?;
    }
    set_network_sysctls(plan)?;
    block_volumes::mount_all(reaper, &plan.block_volumes).await?;
    make_device_nodes(reaper, plan).await?;
    make_working_directory(reaper, plan).await?;

    // The init may end before its process id has come back.
    let _expectation = reaper.expect();
    let mut keep = streams.ends();
    keep.extend(reporter.ends());
    let pid = operation::run(reaper, "create container", &keep, || {
        volumes::enter(&plan.volumes);
        let launcher = Launcher::new(plan.launch.clone(), None, reporter.words()?);
        let builder = builder(id, CONTAINERS, launcher, &reporter, &streams)?;
        let init = builder
            .as_init(bundle)
            .with_systemd(false)
            .with_detach(true);
        let container = init.build().map_err(|error| error_chain(&error))?;
        let cgroup = Cgroup::at(&plan::cgroup_path(id));
        let given = match plan.cgroup_owner {
            Some(uid) => cgroup.bound().and_then(|()| cgroup.give_to(uid)),
            None => cgroup.bound(),
        };
        given.map_err(|error| error_chain(&error))?;
        filter_devices(id, plan).map_err(|error| format!("filter devices: {error}"))?;
        let pid = container.pid().ok_or("libcontainer names no process")?;
        Ok(pid.as_raw())
    })
    .await;
    drop(reporter);
    let pid = match pid {
        Ok(pid) => pid,
        Err(error) => return Err(report.reason_or(error).await),
    };

    let exit = reaper.exit_of(pid);
    bring_up_loopback(pid).map_err(CreateError::Loopback)?;
    let terminal = streams.start()?;
    Ok(Created {
        pid,
        exit,
        report,
        terminal,
    })
}

/// Lets a created container's init run its program.
///
/// # Errors
/// `Operation` and `Launch`.
pub async fn start(reaper: &Reaper, id: &str, report: Report) -> Result<(), CreateError> {
    let directory = Path::new(CONTAINERS).join(id);
    let started = operation::run(reaper, "start container", &[], || {
        let mut container = Container::load(directory).map_err(|error| error_chain(&error))?;
        container.start().map_err(|error| error_chain(&error))
    });
    match started.await {
        Ok(()) => report.outcome().await,
        Err(error) => Err(report.reason_or(error).await),
    }
}

/// Removes what `create` made, whatever of it there is, with the processes that are left. What cannot
/// be removed is not in the way of the rest: the container is forgotten, and nobody comes back.
///
/// # Errors
/// When something is still there.
pub async fn remove(reaper: &Reaper, id: &str) -> Result<(), RemoveError> {
    let ungrouped = Cgroup::at(&plan::cgroup_path(id)).remove().await;
    let unmounted = block_volumes::unmount_all(reaper, id).await;
    user_namespace::remove(id);
    let forgotten = remove_directories(&[Path::new(CONTAINERS).join(id), plan::bundle_path(id)]);
    ungrouped?;
    unmounted?;
    forgotten
}

/// Removes each of them that there is; returns the first failure.
fn remove_directories(paths: &[PathBuf]) -> Result<(), RemoveError> {
    let mut removed = Ok(());
    for path in paths {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let path = path.clone();
                removed = removed.and(Err(RemoveError::File { path, source }));
            }
            _ => {}
        }
    }
    removed
}

/// libcontainer's state of a container.
pub(super) fn state_file(id: &str) -> PathBuf {
    Path::new(CONTAINERS).join(id).join("state.json")
}

/// A builder with everything that init and exec have in common. Runs in an operation.
pub(super) fn builder(
    id: &str,
    root: impl Into<PathBuf>,
    launcher: Launcher,
    reporter: &Reporter,
    streams: &Streams,
) -> Result<ContainerBuilder, String> {
    let own = |fd: &OwnedFd| fd.try_clone().map_err(|error| error.to_string());
    diary::keep(own(&reporter.diary)?);
    let plan = launcher.plan();
    if let Some(maps) = &plan.confinement.id_maps {
        user_namespace::prepare(maps, &plan.process, streams)
            .map_err(|error| format!("prepare for the user namespace: {error}"))?;
    }
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_executor(launcher)
        .with_root_path(root)
        .map_err(|error| error_chain(&error))?;
    Ok(match streams {
        Streams::Pipes { ends, .. } => builder
            .with_stdin(own(&ends[0])?)
            .with_stdout(own(&ends[1])?)
            .with_stderr(own(&ends[2])?),
        Streams::Terminal(console) => builder.with_console_socket(Some(console.path())),
    })
}

/// Of the container's network, which may be new: libcontainer leaves it down.
fn bring_up_loopback(init: i32) -> io::Result<()> {
    Namespace::of(init)?.inside(sys::bring_up_loopback)
}

async fn make_device_nodes(reaper: &Reaper, plan: &Plan) -> Result<(), OperationError> {
    if plan.device_nodes.is_empty() {
        return Ok(());
    }
    let root = root(plan);
    let make = || device_nodes::make(root, &plan.device_nodes).map_err(|e| error_chain(&e));
    operation::run(reaper, "make devices", &[], make).await
}

async fn make_working_directory(reaper: &Reaper, plan: &Plan) -> Result<(), OperationError> {
    let Some(directory) = &plan.working_directory else {
        return Ok(());
    };
    let make = || {
        // What cannot be made the launcher complains of, in the words that users know.
        let _ = working_directory::make(root(plan), directory);
        Ok(())
    };
    operation::run(reaper, "make the working directory", &[], make).await
}

fn root(plan: &Plan) -> &Path {
    let root = plan.spec.root().as_ref();
    root.expect("planned with a root").path()
}

/// Before the user's program runs; the init's own work on /dev is done.
fn filter_devices(id: &str, plan: &Plan) -> io::Result<()> {
    let cgroup = fs::File::open(Cgroup::at(&plan::cgroup_path(id)).directory())?;
    let program = sys::load_program(ProgramKind::Device, &plan.device_filter)?;
    sys::attach_program(cgroup.as_fd(), program.as_fd(), ProgramKind::Device)
}

/// The network is the machine's, which is this sandbox's alone.
fn set_network_sysctls(plan: &Plan) -> Result<(), CreateError> {
    for (name, value) in &plan.network_sysctls {
        // No dot is left that could lead out of the directory.
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|source| CreateError::File {
            action: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

pub(super) fn make_directory(path: &Path) -> Result<(), CreateError> {
    fs::create_dir_all(path).map_err(|source| CreateError::File {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

/// A short file name (a socket's path has 107 bytes, unix(7)) that was not used before.
pub(super) fn unique_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

fn write_bundle(id: &str, plan: &Plan) -> Result<PathBuf, CreateError> {
    let bundle = plan::bundle_path(id);
    make_directory(&bundle)?;
    let path = bundle.join("config.json");
    plan.spec.save(&path).map_err(|error| CreateError::File {
        action: "write",
        path,
        source: io::Error::other(error),
    })?;
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_removed_is_not_in_the_way_of_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["missing", "file", "bundle"].map(|name| directory.path().join(name));
        fs::write(&paths[1], "").unwrap();
        fs::create_dir(&paths[2]).unwrap();

        let error = remove_directories(&paths).unwrap_err();

        assert!(matches!(error, RemoveError::File { path, .. } if path == paths[1]));
        assert!(!paths[2].exists());
    }
}
