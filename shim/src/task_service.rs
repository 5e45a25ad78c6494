//! containerd's task service (containerd.task.v2 and v3, shim.proto): each call translated, carried
//! out by the runtime, and translated back.

use async_trait::async_trait;
use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim::protos::shim::oci::ProcessDetails;
use containerd_shim::protos::shim_async::Task;
use containerd_shim::protos::ttrpc::Result;
use containerd_shim::protos::ttrpc::r#async::TtrpcContext;
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::container::State;
use crate::error::TaskError;
use crate::runtime::Runtime;

/// Type of the figures, as containerd knows it.
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// Type of what is told of a process, as containerd knows it.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The service of one shim.
pub struct TaskService(Runtime);

impl TaskService {
    /// A service of the runtime.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self(runtime)
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Result<CreateTaskResponse> {
        let runtime = self.0.clone();
        let pid = to_its_end(async move { runtime.create(&request).await }).await?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        let runtime = self.0.clone();
        let started = async move { runtime.start(&request.id, &request.exec_id).await };
        let pid = to_its_end(started).await?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let runtime = self.0.clone();
        let deleted = async move {
            if request.exec_id.is_empty() {
                runtime.delete(&request.id).await
            } else {
                runtime.delete_exec(&request.id, &request.exec_id).await
            }
        };
        let (pid, exit) = to_its_end(deleted).await?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        let runtime = self.0.clone();
        to_its_end(async move { runtime.exec(&request).await }).await?;
        Ok(Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        let found = self.0.status(&request.id, &request.exec_id)?;
        let (status, exit) = match found.state {
            State::Created => (Status::CREATED, None),
            State::Running if found.paused => (Status::PAUSED, None),
            State::Running => (Status::RUNNING, None),
            State::Stopped(exit) => (Status::STOPPED, Some(exit)),
        };
        let paths = &found.process.paths;
        Ok(StateResponse {
            id: request.id,
            bundle: found.bundle.display().to_string(),
            pid: found.process.pid(),
            status: EnumOrUnknown::new(status),
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.clone(),
            stderr: paths.stderr.clone(),
            terminal: paths.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at.into()).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<Empty> {
        let KillRequest {
            id,
            exec_id,
            signal,
            all,
            ..
        } = request;
        self.0.kill(&id, &exec_id, signal, all).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<Empty> {
        let ResizePtyRequest {
            id,
            exec_id,
            width,
            height,
            ..
        } = request;
        self.0.resize(&id, &exec_id, width, height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Result<Empty> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        let mut processes = Vec::new();
        let runtime = self.0.clone();
        for process in to_its_end(async move { runtime.pids(&request.id).await }).await? {
            let mut info = ProcessInfo {
                pid: process.pid,
                ..Default::default()
            };
            if !process.exec_id.is_empty() {
                let mut details = ProcessDetails::new();
                details.set_exec_id(process.exec_id);
                info.info = MessageField::some(any(PROCESS_DETAILS, &details)?);
            }
            processes.push(info);
        }
        Ok(PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<Empty> {
        self.0.pause(&request.id).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<Empty> {
        self.0.resume(&request.id).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Result<Empty> {
        Err(TaskError::Unimplemented("a checkpoint").into())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Result<Empty> {
        let runtime = self.0.clone();
        let updated = async move {
            let resources = &request.resources.get_or_default().value;
            runtime.update(&request.id, resources).await
        };
        to_its_end(updated).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        let metrics = self.0.stats(&request.id).await?;
        Ok(StatsResponse {
            stats: MessageField::some(any(METRICS, &metrics)?),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Result<ConnectResponse> {
        let process = self.0.process(&request.id, "")?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: process.pid(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<Empty> {
        self.0.shut_down();
        Ok(Empty::new())
    }
}

/// Completes `work` even if the caller is gone, or has waited long enough: ttrpc drops the handler then, and what
/// is half made would be nobody's, and half undone never undone.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = std::result::Result<T, TaskError>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(e) => Err(TaskError::failed(&e).into()),
    }
}

fn any(type_url: &str, message: &impl Message) -> Result<Any> {
    let value = message.write_to_bytes();
    Ok(Any {
        type_url: type_url.to_owned(),
        value: value.map_err(|e| TaskError::failed(&e))?,
        ..Default::default()
    })
}
