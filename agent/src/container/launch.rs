//! The last step inside a container: from namespaces and mounts to the user's program.
//!
//! ```text
//! prepare (as root)   join the keyring ─▶ let mounts propagate ─▶ enter cwd ─▶ hand over streams ─▶ become the user ─▶ find the program
//!                                     … an init waits here until it is started …
//! execute             seccomp ─▶ capabilities ─▶ hooks ─▶ execve
//! ```
//! What goes wrong is written to the report pipe, worded as users know it from runc; a pipe that
//! closes without a word means that the program runs (or that its process was killed). A failure of
//! `execve(2)` itself is the process's own: a line on its standard error, and status 1.
//!
//! Threat: the container's files decide what is opened and executed here. All of it happens inside
//! the container's root with the descriptors of the process alone, none of them a directory
//! outside, and `cwd` is checked to lie inside.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, NulError};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
#[cfg(feature = "seccomp")]
use libseccomp::{ScmpArch, ScmpSyscall};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{self, Mode};
use nix::unistd::{Gid, Uid};
#[cfg(feature = "seccomp")]
use oci_spec::runtime::Arch;
use oci_spec::runtime::{LinuxCapabilities, Process, Spec};

use super::copy_up;
use super::mounts::Propagation;
#[cfg(feature = "seccomp")]
use super::newer_calls;
use super::process_plan::LaunchPlan;
use super::program::{self, ProgramError, errno_text};
use super::start_hooks::HookError;
use crate::sys::{self, Finder};

/// Device number of `/dev/null` (Documentation/admin-guide/devices.txt).
const DEV_NULL: u64 = libc::makedev(1, 3);

/// Exit status of a process whose program the kernel does not run: runc's.
const EXEC_FAILED: i32 = 1;

/// Why a program cannot be run. The words are runc's, which tools match.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("enter the container's user namespace: {}", .0.desc())]
    UserNamespace(Errno),
    #[error("unable to join session keyring: {}", errno_text(.0))]
    Keyring(io::Error),
    #[error("copy what the image has at {} into the tmpfs: {source}", path.display())]
    CopyUp { path: PathBuf, source: io::Error },
    #[error("change how the mount {} propagates: {}", path.display(), .source.desc())]
    Mount { path: PathBuf, source: Errno },
    #[error("make /dev read-only: {}", errno_text(.0))]
    Devices(io::Error),
    #[error("chdir to cwd ({cwd:?}) set in config.json failed: {}", errno_text(.source))]
    Cwd { cwd: PathBuf, source: io::Error },
    #[error("current working directory is outside of container mount namespace root")]
    CwdOutside,
    #[error("hand standard streams to the user: {}", errno_text(.0))]
    Streams(io::Error),
    #[error("unable to set uid {uid} and gid {gid}: {}", .source.desc())]
    User { uid: u32, gid: u32, source: Errno },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[cfg(feature = "seccomp")]
    #[error("unable to load the seccomp profile: {0}")]
    Seccomp(String),
    #[error("unable to apply capabilities: {0}")]
    Capabilities(String),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("exec {path}: {}", .source.desc().to_lowercase())]
    Exec { path: String, source: Errno },
    #[error("a NUL byte in the arguments or the environment")]
    Nul(#[from] NulError),
}

/// libcontainer's hook for what runs in the container.
#[derive(Clone)]
pub struct Launcher {
    plan: LaunchPlan,
    user_namespace: Option<Arc<OwnedFd>>,
    report: Arc<OwnedFd>,
    program: OnceCell<CString>,
}

impl Launcher {
    /// A launcher that reports to `report`, the write end of a pipe. It enters `user_namespace`:
    /// libcontainer lets an exec join all of its container's namespaces but that.
    pub fn new(plan: LaunchPlan, user_namespace: Option<OwnedFd>, report: OwnedFd) -> Self {
        Self {
            plan,
            user_namespace: user_namespace.map(Arc::new),
            report: report.into(),
            program: OnceCell::new(),
        }
    }

    /// What it does.
    pub fn plan(&self) -> &LaunchPlan {
        &self.plan
    }

    /// Everything that can go wrong before the program is to run.
    fn prepare(&self) -> Result<CString, LaunchError> {
        let process = &self.plan.process;
        if let Some(namespace) = &self.user_namespace {
            // Before anything is done for the container: as its root, not the machine's.
            setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(LaunchError::UserNamespace)?;
        }
        self.join_keyring()?;
        for tmpfs in &self.plan.copy_ups {
            copy_up::fill(tmpfs).map_err(|source| LaunchError::CopyUp {
                path: tmpfs.destination.clone(),
                source,
            })?;
        }
        self.plan.propagations.iter().try_for_each(propagate)?;
        if self.plan.read_only_devices {
            copy_up::make_read_only(Path::new("/dev")).map_err(LaunchError::Devices)?;
        }
        enter_cwd(process.cwd(), self.plan.create_cwd)?;
        let uid = Uid::from_raw(process.user().uid());
        for stream in [
            io::stdin().as_fd(),
            io::stdout().as_fd(),
            io::stderr().as_fd(),
        ] {
            hand_over(stream, uid).map_err(LaunchError::Streams)?;
        }
        become_user(process)?;
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().map_or("", String::as_str);
        let path = value_of("PATH", process).unwrap_or_default();
        Ok(CString::new(program::find(name, path)?)?)
    }

    /// Without one of its own a process has its user's, which is the same in all containers.
    fn join_keyring(&self) -> Result<(), LaunchError> {
        let confinement = &self.plan.confinement;
        let name = CString::new(confinement.session_keyring.as_str())?;
        // In a user namespace it is its root's, whom an exec has not become yet.
        let finder = match confinement.id_maps {
            Some(_) => Finder::Others,
            None => Finder::User,
        };
        match sys::join_session_keyring(&name, finder) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            joined => joined.map_err(LaunchError::Keyring),
        }
    }

    /// Becomes the program; returns only when that fails.
    fn execute(&self) -> Result<std::convert::Infallible, LaunchError> {
        let process = &self.plan.process;
        let program = self
            .program
            .get()
            .expect("libcontainer validates before it executes");
        let args = c_strings(process.args().iter().flatten())?;
        let environment = environment(process, home);
        let variables = c_strings(&environment)?;
        // Another user than root has lost its effective set with `setresuid`.
        capabilities::reset_effective(&*create_syscall())
            .map_err(|error| LaunchError::Capabilities(crate::error_chain(&error)))?;
        // Without no_new_privs a profile takes CAP_SYS_ADMIN, so it comes before the drop; with
        // it, as late as possible (as in runc).
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        if !no_new_privileges {
            self.load_seccomp()?;
        }
        drop_capabilities(&self.plan.capabilities)?;
        if no_new_privileges {
            self.load_seccomp()?;
        }
        if let Some(hooks) = &self.plan.hooks {
            // The image's programs: nothing is left that the container's own has not.
            hooks.run(&environment)?;
        }
        nix::unistd::execve(program, &args, &variables).map_err(|source| LaunchError::Exec {
            path: program.to_string_lossy().into_owned(),
            source,
        })
    }

    #[cfg(feature = "seccomp")]
    fn load_seccomp(&self) -> Result<(), LaunchError> {
        let Some(profile) = &self.plan.confinement.seccomp else {
            return Ok(());
        };
        libcontainer::seccomp::initialize_seccomp(profile)
            .map_err(|error| LaunchError::Seccomp(crate::error_chain(&error)))?;
        if let Some(filter) = newer_calls::filter(profile, number_of) {
            sys::load_seccomp_filter(&filter)
                .map_err(|error| LaunchError::Seccomp(error.to_string()))?;
        }
        Ok(())
    }

    #[cfg(not(feature = "seccomp"))]
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "stands in for the above"
    )]
    fn load_seccomp(&self) -> Result<(), LaunchError> {
        // `plan` lets no profile through.
        Ok(())
    }

    fn report(&self, error: &LaunchError) {
        if let Ok(report) = self.report.try_clone() {
            // Nobody else is left to tell.
            let _ = fs::File::from(report).write_all(error.to_string().as_bytes());
        }
    }
}

impl Executor for Launcher {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        match self.prepare() {
            Ok(program) => {
                self.program.get_or_init(|| program);
                Ok(())
            }
            Err(error) => {
                self.report(&error);
                Err(ExecutorValidationError::ArgValidationError(
                    error.to_string(),
                ))
            }
        }
    }

    /// Leaves this process's environment alone: the program gets its own with `execve(2)`.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Err(error) = self.execute();
        if let LaunchError::Exec { .. } = error {
            // As with runc: by now the process counts as started, and this is its own failure.
            // (`ctr run` takes no other: it leaves a task behind whose Start has failed.)
            let _ = writeln!(io::stderr(), "{error}");
            std::process::exit(EXEC_FAILED);
        }
        self.report(&error);
        Err(ExecutorError::Other(error.to_string()))
    }
}

fn propagate(propagation: &Propagation) -> Result<(), LaunchError> {
    let Propagation { destination, flags } = propagation;
    let no = None::<&str>;
    nix::mount::mount(no, destination, no, *flags, no).map_err(|source| LaunchError::Mount {
        path: destination.clone(),
        source,
    })
}

fn enter_cwd(cwd: &Path, create: bool) -> Result<(), LaunchError> {
    let enter = || std::env::set_current_dir(cwd);
    let entered = match enter() {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            create_cwd(cwd).and_then(|()| enter())
        }
        entered => entered,
    };
    entered.map_err(|source| LaunchError::Cwd {
        cwd: cwd.to_owned(),
        source,
    })?;
    // getcwd(2) fails, or says "(unreachable)", for a directory that is not below the root.
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(LaunchError::CwdOutside),
    }
}

/// Creates root's directories with mode 755: the process's umask, already in force, is for its own.
fn create_cwd(cwd: &Path) -> io::Result<()> {
    let umask = stat::umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let created = fs::create_dir_all(cwd);
    stat::umask(umask);
    created
}

/// Makes a stream the user's, so that the program can open it again as `/dev/stdout`.
fn hand_over(stream: BorrowedFd<'_>, uid: Uid) -> io::Result<()> {
    let stat = fs::File::from(stream.try_clone_to_owned()?).metadata()?;
    if stat.rdev() == DEV_NULL || stat.uid() == uid.as_raw() {
        return Ok(());
    }
    match nix::unistd::fchown(stream, Some(uid), None) {
        // A file of the user's on a read-only or foreign file system: not ours to give.
        Ok(()) | Err(Errno::EROFS | Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Switches groups, group and user, keeping the capabilities for `drop_capabilities`.
fn become_user(process: &Process) -> Result<(), LaunchError> {
    let user = process.user();
    // Each once, as with runc: engines may name one twice.
    let groups: BTreeSet<u32> = user.additional_gids().iter().flatten().copied().collect();
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    let switch = || {
        nix::sys::prctl::set_keepcaps(true)?;
        nix::unistd::setgroups(&groups)?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        nix::sys::prctl::set_keepcaps(false)
    };
    switch().map_err(|source| LaunchError::User {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        source,
    })
}

/// The number of a system call in the tables of libseccomp.
#[cfg(feature = "seccomp")]
fn number_of(name: &str, arch: Arch) -> Option<u32> {
    let arch = match arch {
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    };
    let number = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
    // One that the architecture does not have is negative.
    u32::try_from(i32::from(number)).ok()
}

fn drop_capabilities(own: &LinuxCapabilities) -> Result<(), LaunchError> {
    let dropped = capabilities::drop_privileges(own, &*create_syscall());
    dropped.map_err(|error| LaunchError::Capabilities(crate::error_chain(&error)))
}

/// The program's environment: the configured one, with HOME if it has none.
fn environment(process: &Process, home: impl FnOnce(u32) -> String) -> Vec<String> {
    let mut environment = process.env().clone().unwrap_or_default();
    if value_of("HOME", process).is_none_or(str::is_empty) {
        environment.retain(|variable| !variable.starts_with("HOME="));
        environment.push(format!("HOME={}", home(process.user().uid())));
    }
    environment
}

/// The last value that the environment gives a variable.
fn value_of<'a>(name: &str, process: &'a Process) -> Option<&'a str> {
    let variables = process.env().iter().flatten().rev();
    variables
        .filter_map(|variable| variable.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// The user's home directory by the container's own /etc/passwd, or `/`.
fn home(uid: u32) -> String {
    let passwd = read_file(Path::new("/etc/passwd")).unwrap_or_default();
    home_in(&passwd, uid).unwrap_or("/").to_owned()
}

/// Reads a file that the container's owner wrote, if it is one: a pipe would be waited for.
fn read_file(path: &Path) -> io::Result<String> {
    /// A longer one than any image has.
    const LIMIT: u64 = 1 << 20;
    let mut options = fs::File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = file.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads passwd(5): name:password:uid:gid:gecos:home:shell.
fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    let mut entries = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    entries.find_map(|entry| match entry[..] {
        [_, _, id, _, _, home, ..] if id.parse() == Ok(uid) && !home.is_empty() => Some(home),
        _ => None,
    })
}

fn c_strings<'a>(strings: impl IntoIterator<Item = &'a String>) -> Result<Vec<CString>, NulError> {
    strings
        .into_iter()
        .map(|s| CString::new(s.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(uid: u32, env: &str) -> Process {
        serde_json::from_str(&format!(
            r#"{{"cwd": "/", "args": ["sh"], "user": {{"uid": {uid}, "gid": 0}}, "env": [{env}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_program_of_another_architecture_is_reported_as_runc_does() {
        let error = LaunchError::Exec {
            path: "/bin/true".into(),
            source: Errno::ENOEXEC,
        };

        assert_eq!(error.to_string(), "exec /bin/true: exec format error");
    }

    #[test]
    fn home_comes_from_passwd_unless_it_is_set() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv/web:/bin/sh\n";
        let home = |uid| home_in(passwd, uid).unwrap_or("/").to_owned();
        let bare = process(33, "");
        let set = process(33, r#""HOME=/h", "HOME=/x""#);
        let stranger = process(9, "");

        assert_eq!(environment(&bare, home).last().unwrap(), "HOME=/srv/web");
        assert_eq!(environment(&set, home), ["HOME=/h", "HOME=/x"]);
        assert_eq!(environment(&stranger, home).last().unwrap(), "HOME=/");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, file) = (directory.path().join("pipe"), directory.path().join("file"));
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        fs::write(&file, "root:x:0:0:::\n").unwrap();

        assert!(read_file(&pipe).is_err());
        assert!(read_file(directory.path()).is_err());
        assert_eq!(read_file(&file).unwrap(), "root:x:0:0:::\n");
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let twice = process(0, r#""PATH=/a", "PATH=/b""#);

        assert_eq!(value_of("PATH", &twice), Some("/b"));
    }
}
