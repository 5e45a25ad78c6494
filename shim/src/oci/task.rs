//! The container's shim, started as containerd starts one and asked as containerd asks it (the task
//! service). There is no containerd behind it: its events go to nobody.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim::bootstrap::BootstrapParams;
use containerd_shim::protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StateRequest, Status, UpdateTaskRequest, WaitRequest,
};
use containerd_shim::protos::shim_async::{Client, TaskClient};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::context::Context;

use super::error::OciError;
use super::folder::Folder;
use crate::events::NOBODY;
use crate::state_dir::StateDir;
use crate::stdio::Paths;

/// The shim, beside this program.
const SHIM: &str = "containerd-shim-hull-v2";

/// Bytes of what a shim that fails says.
const LAST_WORDS: usize = 4096;

/// How long a shim may take to end once it is told to.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// The names that containerd has for what a request holds.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// What a process does, and its pid on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) status: &'static str,
    pub(super) pid: u32,
}

/// signal(7).
pub(super) const SIGKILL: u32 = 9;

/// What is no more.
pub(super) const STOPPED: State = State {
    status: "stopped",
    pid: 0,
};

/// A container's shim.
#[derive(Clone)]
pub(super) struct Task {
    client: TaskClient,
    id: String,
    /// Where it listens.
    socket: PathBuf,
}

impl Task {
    /// Starts the shim of a new container, or finds that of the machine which it joins.
    pub(super) async fn start_shim(folder: &Folder) -> Result<Self, OciError> {
        let params = BootstrapParams {
            instance_id: folder.id.clone(),
            namespace: folder.namespace.clone(),
            containerd_ttrpc_address: NOBODY.to_owned(),
            ..Default::default()
        };
        let input = params.write_to_bytes();
        run_shim(
            folder,
            "start",
            &input.map_err(|e| OciError::Lost(e.to_string()))?,
        )?;
        let lost = || OciError::Lost("it did not say where it listens".to_owned());
        Self::connect(folder).await.ok_or_else(lost)
    }

    /// The shim of a container; none when it is gone.
    pub(super) async fn connect(folder: &Folder) -> Option<Self> {
        let address = folder.address()?;
        let address = address.trim();
        let client = Client::connect(address).await.ok()?;
        Some(Self {
            client: TaskClient::new(client),
            id: folder.id.clone(),
            socket: address.trim_start_matches("unix://").into(),
        })
    }

    /// Creates the container; returns the pid of a process in its network namespace.
    pub(super) async fn create(&self, bundle: &str, paths: &Paths) -> Result<u32, OciError> {
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_owned(),
            terminal: paths.terminal,
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.clone(),
            stderr: paths.stderr.clone(),
            ..Default::default()
        };
        Ok(self.client.create(forever(), &request).await?.pid)
    }

    /// Adds a process, which `spec` is the JSON of.
    pub(super) async fn exec(
        &self,
        exec_id: &str,
        spec: Vec<u8>,
        paths: &Paths,
    ) -> Result<(), OciError> {
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal: paths.terminal,
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.clone(),
            stderr: paths.stderr.clone(),
            spec: any(PROCESS, spec),
            ..Default::default()
        };
        self.client.exec(forever(), &request).await?;
        Ok(())
    }

    pub(super) async fn start(&self, exec_id: &str) -> Result<(), OciError> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.client.start(forever(), &request).await?;
        Ok(())
    }

    /// Waits for a process's end; returns its exit status, or 128 + signal.
    pub(super) async fn wait(&self, exec_id: &str) -> Result<u32, OciError> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        Ok(self.client.wait(forever(), &request).await?.exit_status)
    }

    pub(super) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), OciError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.client.kill(forever(), &request).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, exec_id: &str) -> Result<(), OciError> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.client.delete(forever(), &request).await?;
        Ok(())
    }

    /// What a container does; one that its shim does not know is over.
    pub(super) async fn state(&self) -> Result<State, OciError> {
        let request = StateRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let found = match self
            .client
            .state(forever(), &request)
            .await
            .map_err(OciError::from)
        {
            Err(OciError::NotRunning) => return Ok(STOPPED),
            found => found?,
        };
        let status = match found.status.enum_value_or_default() {
            Status::CREATED => "created",
            Status::RUNNING => "running",
            Status::PAUSED | Status::PAUSING => "paused",
            Status::STOPPED | Status::UNKNOWN => return Ok(STOPPED),
        };
        let pid = found.pid;
        Ok(State { status, pid })
    }

    pub(super) async fn resize(
        &self,
        exec_id: &str,
        width: u16,
        height: u16,
    ) -> Result<(), OciError> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        self.client.resize_pty(forever(), &request).await?;
        Ok(())
    }

    /// Lets a process's input end after what is in the pipe.
    pub(super) async fn close_stdin(&self, exec_id: &str) -> Result<(), OciError> {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.client.close_io(forever(), &request).await?;
        Ok(())
    }

    pub(super) async fn pids(&self) -> Result<Vec<u32>, OciError> {
        let request = PidsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer = self.client.pids(forever(), &request).await?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    pub(super) async fn pause(&self) -> Result<(), OciError> {
        let request = PauseRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.pause(forever(), &request).await?;
        Ok(())
    }

    pub(super) async fn resume(&self) -> Result<(), OciError> {
        let request = ResumeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.resume(forever(), &request).await?;
        Ok(())
    }

    /// Sets limits, which `resources` is the JSON of.
    pub(super) async fn update(&self, resources: Vec<u8>) -> Result<(), OciError> {
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: any(RESOURCES, resources),
            ..Default::default()
        };
        self.client.update(forever(), &request).await?;
        Ok(())
    }

    /// Ends the shim, unless it has other containers. Waits until its socket is gone, which is that
    /// of the next container of this name.
    pub(super) async fn shut_down(&self, state: &Path, namespace: &str) {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        // One that ends need not have answered.
        let _ = self.client.shutdown(forever(), &request).await;
        let socket = format!("unix://{}", self.socket.display());
        let is_left = |sandbox: StateDir| sandbox.address().is_some_and(|it| it.trim() == socket);
        if StateDir::all(state, namespace).into_iter().any(is_left) {
            return;
        }
        let gone = async {
            while self.socket.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(END_PATIENCE, gone).await;
    }
}

/// Cleans up after a shim that is gone.
pub(super) fn clean_up(folder: &Folder) -> Result<(), OciError> {
    run_shim(folder, "delete", &[])
}

/// Runs one of the shim's actions, in the container's folder.
fn run_shim(folder: &Folder, action: &'static str, input: &[u8]) -> Result<(), OciError> {
    let own = std::env::current_exe().map_err(OciError::kernel("find this program"))?;
    let program = own.with_file_name(SHIM);
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &folder.namespace, "-id", &folder.id])
        .arg("-bundle")
        .arg(folder.path())
        .arg(action)
        .current_dir(folder.path())
        // What a terminal's keys send is for this program to pass on, not for the machine.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut run = || {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().expect("it is piped");
        // One that ends before it has read says why on standard error.
        let _ = stdin.write_all(input);
        drop(stdin);
        child.wait_with_output()
    };
    let output = run().map_err(OciError::file("run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().chars().take(LAST_WORDS).collect();
    Err(OciError::Shim {
        program,
        action,
        said,
    })
}

fn any(type_url: &str, value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    })
}

/// The shim has its own patience with the guest.
fn forever() -> Context {
    Context::default()
}
