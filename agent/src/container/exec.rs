//! Runs a further process in a container.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::create::{
    CONSOLES, CreateError, Report, builder, make_directory, state_file, unique_name,
};
use super::launch::Launcher;
use super::plan::cgroup_path;
use super::process_plan::ExecPlan;
use crate::cgroup::Cgroup;
use crate::error_chain;
use crate::host::Host;
use crate::operation;
use crate::reaper::{Exit, Reaper};
use crate::stdio::{Ports, Streams, Terminal};

/// One directory for each exec that is being started.
const EXECS: &str = "/run/hull/execs";

/// A process whose program runs.
pub struct Started {
    /// In the agent's pid namespace.
    pub pid: i32,
    /// How it ends.
    pub exit: oneshot::Receiver<Exit>,
    /// If it has one.
    pub terminal: Option<Terminal>,
}

/// A name for the workspace of an exec, which is there while it is being started.
pub fn workspace() -> PathBuf {
    Path::new(EXECS).join(unique_name())
}

/// Where the process's id is in a workspace, from when there is a process.
pub fn pid_file(workspace: &Path) -> PathBuf {
    workspace.join("pid")
}

/// Starts a process in container `id`, whose init is process `init`.
///
/// # Errors
/// All of `CreateError`.
pub async fn start(
    reaper: &Reaper,
    host: Host,
    (id, init): (&str, i32),
    workspace: PathBuf,
    plan: &ExecPlan,
    ports: Ports,
) -> Result<Started, CreateError> {
    let workspace = Workspace::create(workspace, id, plan)?;
    make_directory(Path::new(CONSOLES))?;
    let streams = Streams::connect(host, ports, Path::new(CONSOLES), &unique_name()).await?;
    let (report, reporter) = Report::open()?;

    // The process may end before its id has come back.
    let _expectation = reaper.expect();
    let mut keep = streams.ends();
    keep.extend(reporter.ends());
    let pid = operation::run(reaper, "start process", &keep, || {
        let maps = plan.launch.confinement.id_maps.as_ref();
        let namespace = maps.map(|_| open_user_namespace(init)).transpose()?;
        let launcher = Launcher::new(plan.launch.clone(), namespace, reporter.words()?);
        let builder = builder(id, &workspace.root, launcher, &reporter, &streams)?
            .with_pid_file(Some(pid_file(&workspace.root)))
            .map_err(|error| error_chain(&error))?;
        let beside = Cgroup::at(&cgroup_path(id)).place_beside(init);
        let tenant = builder.as_tenant().with_detach(true);
        let tenant = tenant.with_sub_cgroup(beside);
        let pid = tenant.with_process(Some(workspace.process())).build();
        Ok(pid.map_err(|error| error_chain(&error))?.as_raw())
    })
    .await;
    drop(reporter);
    let pid = match pid {
        Ok(pid) => pid,
        Err(error) => return Err(report.reason_or(error).await),
    };

    let exit = reaper.exit_of(pid);
    report.outcome().await?;
    Ok(Started {
        pid,
        exit,
        terminal: streams.start()?,
    })
}

fn open_user_namespace(init: i32) -> Result<OwnedFd, String> {
    let path = format!("/proc/{init}/ns/user");
    let file = fs::File::open(&path).map_err(|error| format!("open {path}: {error}"))?;
    Ok(file.into())
}

/// A copy of libcontainer's state for one exec: libcontainer leaves sockets beside the state it
/// reads, and they go with the copy.
struct Workspace {
    root: PathBuf,
}

impl Workspace {
    fn create(root: PathBuf, id: &str, plan: &ExecPlan) -> Result<Self, CreateError> {
        let workspace = Self { root };
        let container = workspace.root.join(id);
        make_directory(&container)?;
        let write = |path: PathBuf, done: std::io::Result<()>| match done {
            Ok(()) => Ok(()),
            Err(source) => Err(CreateError::File {
                action: "write",
                path,
                source,
            }),
        };
        let state = container.join("state.json");
        let copied = fs::copy(state_file(id), &state);
        write(state, copied.map(drop))?;
        let process = serde_json::to_vec(&plan.process).map_err(std::io::Error::from);
        let written = process.and_then(|json| fs::write(workspace.process(), json));
        write(workspace.process(), written)?;
        Ok(workspace)
    }

    fn process(&self) -> PathBuf {
        self.root.join("process.json")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.root) {
            log::warn!("remove {}: {error}", self.root.display());
        }
    }
}
