//! The runtime against an agent that does as the test says: order of events, and what is refused.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use agent_protocol::{self as agent, Agent, AgentClient, create_agent};
use async_trait::async_trait;
use containerd_shim::protos::api::{CreateTaskRequest, ExecProcessRequest, StartRequest};
use containerd_shim::protos::shim_async::Task;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ttrpc::MessageHeader;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server, ServerStreamSender, TtrpcContext};
use vmm_control::{Channel, Request};

use super::Runtime;
use super::on_host::OnHost;
use crate::container::{Container, LOST, Process, State};
use crate::error::TaskError;
use crate::events::{Events, TaskEvent};
use crate::instance::Instance;
use crate::port_forward::Bound;
use crate::sandbox::Sandbox;
use crate::state_dir::StateDir;
use crate::stdio::{Paths, Streams};
use crate::task_service::TaskService;

const ID: &str = "tide";

/// An agent whose processes end when they are signalled, unless they are `deaf`, and those named `short`
/// before the answer to their Start is under way; of `silent` ones that never comes.
struct FakeAgent {
    deaf: AtomicBool,
    is_silent: Notify,
    events: UnboundedSender<agent::Event>,
    stream: StdMutex<Option<UnboundedReceiver<agent::Event>>>,
    vmm: StdMutex<Option<u32>>,
}

impl FakeAgent {
    fn exit(&self, process: agent::ProcessId, status: u32) {
        let exit = agent::Exit {
            process: MessageField::some(process),
            status,
            ..Default::default()
        };
        let mut event = agent::Event::new();
        event.set_exit(exit);
        self.events.send(event).unwrap();
    }
}

impl FakeAgent {
    fn out_of_memory(&self) {
        let oom = agent::Oom {
            container_id: ID.to_owned(),
            ..Default::default()
        };
        let mut event = agent::Event::new();
        event.set_oom(oom);
        self.events.send(event).unwrap();
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn start(
        &self,
        _: &TtrpcContext,
        process: agent::ProcessId,
    ) -> ttrpc::Result<agent::StartResponse> {
        if process.exec_id == "silent" {
            self.exit(process, 3);
            self.is_silent.notify_one();
            return pending().await;
        }
        if process.exec_id == "short" {
            self.exit(process, 3);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(agent::StartResponse {
            pid: 77,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, _: agent::ExecRequest) -> ttrpc::Result<agent::Empty> {
        Ok(agent::Empty::new())
    }

    async fn signal(
        &self,
        _: &TtrpcContext,
        request: agent::SignalRequest,
    ) -> ttrpc::Result<agent::Empty> {
        if !self.deaf.load(Ordering::Relaxed) {
            self.exit(request.process.unwrap_or_default(), 128 + request.signal);
        }
        Ok(agent::Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, _: agent::ProcessId) -> ttrpc::Result<agent::Empty> {
        Ok(agent::Empty::new())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: agent::Empty,
        stream: ServerStreamSender<agent::Event>,
    ) -> ttrpc::Result<()> {
        let mut events = self.stream.lock().unwrap().take().unwrap();
        while let Some(event) = events.recv().await {
            if event.what.is_none() {
                break;
            }
            stream.send(&event).await?;
        }
        Ok(())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: agent::Empty) -> ttrpc::Result<agent::Empty> {
        let vmm = self.vmm.lock().unwrap().unwrap();
        kill(vmm);
        Ok(agent::Empty::new())
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

struct Fixture {
    runtime: Runtime,
    events: UnboundedReceiver<TaskEvent>,
    agent: Arc<FakeAgent>,
    state: StateDir,
    vmm: Channel,
    shutdown: Arc<Notify>,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// A container that was created.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, receiver) = unbounded_channel();
        let agent = Arc::new(FakeAgent {
            deaf: AtomicBool::new(false),
            is_silent: Notify::new(),
            events: sender,
            stream: StdMutex::new(Some(receiver)),
            vmm: StdMutex::new(None),
        });
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let service: Arc<dyn Agent + Send + Sync> = agent.clone();
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_agent(service));
        server.start().await.unwrap();
        let connection = UnixStream::connect(&socket).await.unwrap();
        let client = AgentClient::new(Client::new(Socket::new(connection)));

        let state = StateDir::at(directory.path(), "default", ID).unwrap();
        state.create().unwrap();
        let (control, vmm) = Channel::pair().unwrap();
        let sandbox = Sandbox::of_test(state.clone(), control.into(), client);
        *agent.vmm.lock().unwrap() = Some(sandbox.pid());
        let init = Process::new("", Paths::default(), Streams::default(), sandbox.pid());
        let container = Container::new(ID, directory.path().to_owned(), state.clone(), init);

        let (events, published) = Events::kept();
        let shutdown = Arc::new(Notify::new());
        let containerd = Instance::new("/run/containerd/containerd.sock", directory.path());
        let address = "unix:///tide";
        let runtime = Runtime::new(
            "default",
            ID,
            address,
            containerd,
            events,
            Arc::clone(&shutdown),
        );
        let request = CreateTaskRequest {
            id: ID.to_owned(),
            ..Default::default()
        };
        runtime.adopt(
            &request,
            &sandbox,
            container,
            Bound::default(),
            OnHost::default(),
        );
        runtime.adopt_machine(Arc::new(sandbox));
        Self {
            runtime,
            events: published,
            agent,
            state,
            vmm,
            shutdown,
            _server: server,
            _directory: directory,
        }
    }

    /// A further container in the machine.
    fn join(&self, id: &str) {
        let sandbox = Arc::clone(self.runtime.members().sandbox().unwrap());
        let init = Process::new("", Paths::default(), Streams::default(), 0);
        let bundle = self.state.path().join("bundle");
        let container = Container::new(id, bundle, self.state.clone(), init);
        let request = CreateTaskRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let bound = Bound::default();
        self.runtime
            .adopt(&request, &sandbox, container, bound, OnHost::default());
    }

    async fn add(&self, exec_id: &str) -> Result<(), TaskError> {
        let process = br#"{ "cwd": "/", "args": ["true"], "user": { "uid": 0, "gid": 0 } }"#;
        let request = ExecProcessRequest {
            id: ID.to_owned(),
            exec_id: exec_id.to_owned(),
            spec: MessageField::some(Any {
                value: process.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.runtime.exec(&request).await
    }

    /// Takes the next event: its name, whose it is, and an exit's status.
    async fn event(&mut self) -> (&'static str, String, u32) {
        let event = tokio::time::timeout(Duration::from_secs(10), self.events.recv());
        match event.await.expect("an event comes").unwrap() {
            TaskEvent::Create(e) => ("create", e.container_id, 0),
            TaskEvent::Start(e) => ("start", e.container_id, 0),
            TaskEvent::ExecAdded(e) => ("exec-added", e.exec_id, 0),
            TaskEvent::ExecStarted(e) => ("exec-started", e.exec_id, 0),
            TaskEvent::Exit(e) => ("exit", e.id, e.exit_status),
            TaskEvent::Oom(e) => ("oom", e.container_id, 0),
            TaskEvent::Delete(e) => ("delete", e.container_id, e.exit_status),
            other => panic!("{other:?}"),
        }
    }

    async fn expect(&mut self, events: &[(&'static str, &str, u32)]) {
        for &(name, whose, status) in events {
            assert_eq!(self.event().await, (name, whose.to_owned(), status));
        }
    }
}

#[tokio::test]
async fn a_life_is_told_in_order_and_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();

    runtime.start(ID, "").await.unwrap();
    fixture.add("once").await.unwrap();
    runtime.start(ID, "once").await.unwrap();
    runtime.kill(ID, "once", 9, false).await.unwrap();
    assert_eq!(
        runtime.process(ID, "once").unwrap().wait().await.status,
        137
    );
    runtime.delete_exec(ID, "once").await.unwrap();
    runtime.kill(ID, "", 15, false).await.unwrap();
    runtime.process(ID, "").unwrap().wait().await;
    assert!(
        !fixture.state.path().exists(),
        "the end of a container is told before its machine's"
    );
    let (_, exit) = runtime.delete(ID).await.unwrap();
    assert_eq!(exit.status, 143);
    runtime.shut_down();

    let life = [
        ("create", ID, 0),
        ("start", ID, 0),
        ("exec-added", "once", 0),
        ("exec-started", "once", 0),
        ("exit", "once", 137),
        ("exit", ID, 143),
        ("delete", ID, 143),
    ];
    fixture.expect(&life).await;
    assert!(!fixture.state.path().exists());
    fixture.shutdown.notified().await;
}

#[tokio::test]
async fn an_end_that_overtakes_the_answer_to_start_is_told_after_it() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    runtime.start(ID, "").await.unwrap();
    fixture.add("short").await.unwrap();

    assert_eq!(runtime.start(ID, "short").await.unwrap(), 77);

    fixture.expect(&[("create", ID, 0), ("start", ID, 0)]).await;
    let short = [
        ("exec-added", "short", 0),
        ("exec-started", "short", 0),
        ("exit", "short", 3),
    ];
    fixture.expect(&short).await;
}

#[tokio::test]
async fn an_answer_that_never_comes_holds_up_no_other_event() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    runtime.start(ID, "").await.unwrap();
    fixture.add("silent").await.unwrap();
    let starts = runtime.clone();
    tokio::spawn(async move { starts.start(ID, "silent").await });
    fixture.expect(&[("create", ID, 0), ("start", ID, 0)]).await;
    fixture.expect(&[("exec-added", "silent", 0)]).await;
    fixture.agent.is_silent.notified().await;
    fixture.agent.out_of_memory();
    fixture.expect(&[("oom", ID, 0)]).await;
}

#[tokio::test]
async fn sigkill_ends_a_container_whatever_its_guest_does() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    runtime.start(ID, "").await.unwrap();
    fixture.agent.deaf.store(true, Ordering::Relaxed);

    runtime.kill(ID, "", 9, false).await.unwrap();
    let exit = runtime.process(ID, "").unwrap().wait().await;

    assert_eq!(exit.status, LOST);
    runtime.delete(ID).await.unwrap();
    let life = [
        ("create", ID, 0),
        ("start", ID, 0),
        ("exit", ID, LOST),
        ("delete", ID, LOST),
    ];
    fixture.expect(&life).await;
    assert!(!fixture.state.path().exists());
}

#[tokio::test]
async fn a_machine_is_not_ended_over_one_container_that_stays_while_others_live() {
    let fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    fixture.join("ebb");
    fixture.agent.deaf.store(true, Ordering::Relaxed);

    runtime.kill(ID, "", 9, false).await.unwrap();
    let init = |id| runtime.process(id, "").unwrap();
    let first = init(ID);
    let waited = tokio::time::timeout(Duration::from_secs(1), first.wait());
    assert!(waited.await.is_err(), "it ends with another in its machine");
    runtime.kill("ebb", "", 9, false).await.unwrap();
    for id in [ID, "ebb"] {
        assert_eq!(init(id).wait().await.status, LOST);
    }
}

#[tokio::test]
async fn what_does_not_fit_the_state_is_refused() {
    let fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();

    let missing = runtime.start("ebb", "").await;
    assert!(matches!(missing, Err(TaskError::NotFound(_))));
    runtime.start(ID, "").await.unwrap();
    let again = runtime.start(ID, "").await;
    assert!(matches!(again, Err(TaskError::Precondition(_))));
    let running = runtime.delete(ID).await;
    assert!(matches!(running, Err(TaskError::Precondition(_))));
    fixture.add("once").await.unwrap();
    let twice = fixture.add("once").await;
    assert!(matches!(twice, Err(TaskError::Exists(_))));
    runtime.shut_down();
    let early = tokio::time::timeout(Duration::from_millis(20), fixture.shutdown.notified());
    assert!(early.await.is_err(), "it ends although it has a container");

    runtime.kill(ID, "", 9, false).await.unwrap();
    runtime.process(ID, "").unwrap().wait().await;
    let finished = runtime.kill(ID, "", 9, false).await;
    assert!(matches!(finished, Err(TaskError::Finished)));
    let late = fixture.add("late").await;
    assert!(matches!(late, Err(TaskError::NotRunning)));
    let late = runtime.start(ID, "once").await;
    assert!(matches!(late, Err(TaskError::NotRunning)));
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_deleted() {
    let mut fixture = Fixture::new().await;
    let (_, exit) = fixture.runtime.delete(ID).await.unwrap();
    assert_eq!(exit.status, LOST);
    fixture
        .expect(&[("create", ID, 0), ("delete", ID, LOST)])
        .await;
    let gone = fixture.runtime.delete(ID).await;
    assert!(matches!(gone, Err(TaskError::NotFound(_))));
}

#[tokio::test]
async fn a_process_that_was_never_started_has_not_failed() {
    let fixture = Fixture::new().await;
    fixture.add("once").await.unwrap();
    let (_, exit) = fixture.runtime.delete_exec(ID, "once").await.unwrap();
    assert_eq!(exit.status, 0);
}

#[tokio::test]
async fn a_process_that_the_agent_could_not_end_ends_with_its_container() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    fixture.join("ebb");
    runtime.start(ID, "").await.unwrap();
    for exec_id in ["stuck", "idle"] {
        fixture.add(exec_id).await.unwrap();
    }
    runtime.start(ID, "stuck").await.unwrap();
    let (stuck, idle) = (
        runtime.process(ID, "stuck").unwrap(),
        runtime.process(ID, "idle").unwrap(),
    );
    runtime.kill(ID, "", 9, false).await.unwrap();
    runtime.process(ID, "").unwrap().wait().await;

    runtime.delete(ID).await.unwrap();

    assert_eq!(stuck.wait().await.status, LOST);
    assert_eq!(idle.wait().await.status, 0);
    let life = [
        ("create", ID, 0),
        ("create", "ebb", 0),
        ("start", ID, 0),
        ("exec-added", "stuck", 0),
        ("exec-added", "idle", 0),
        ("exec-started", "stuck", 0),
        ("exit", ID, 137),
        ("exit", "stuck", LOST),
        ("delete", ID, 137),
    ];
    fixture.expect(&life).await;
}

#[tokio::test]
async fn what_was_begun_is_done_when_its_caller_is_gone() {
    let mut fixture = Fixture::new().await;
    let service = TaskService::new(fixture.runtime.clone());
    let context = TtrpcContext {
        mh: MessageHeader::default(),
        metadata: HashMap::new(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    };
    fixture.runtime.start(ID, "").await.unwrap();
    fixture.add("short").await.unwrap();
    let request = StartRequest {
        id: ID.to_owned(),
        exec_id: "short".to_owned(),
        ..Default::default()
    };
    // As the library does to a call whose connection ends.
    let called = tokio::time::timeout(Duration::from_millis(20), service.start(&context, request));
    assert!(called.await.is_err(), "the agent takes a moment");

    let life = [
        ("create", ID, 0),
        ("start", ID, 0),
        ("exec-added", "short", 0),
        ("exec-started", "short", 0),
        ("exit", "short", 3),
    ];
    fixture.expect(&life).await;
}

#[tokio::test]
async fn an_agent_that_hangs_up_ends_every_process() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    runtime.start(ID, "").await.unwrap();
    // The end of the fake's event stream.
    fixture.agent.events.send(agent::Event::new()).unwrap();

    let ended = [("create", ID, 0), ("start", ID, 0), ("exit", ID, LOST)];
    fixture.expect(&ended).await;

    let state = runtime.status(ID, "").unwrap().state;
    assert!(matches!(state, State::Stopped(exit) if exit.status == LOST));
    runtime.delete(ID).await.unwrap();
    // The machine is ended without a word to the agent.
    let (request, _) = fixture.vmm.receive::<Request>().unwrap();
    assert_eq!(request, Request::Stop);
    fixture.expect(&[("delete", ID, LOST)]).await;
}

#[tokio::test]
async fn a_machine_ends_with_the_last_of_its_containers() {
    let mut fixture = Fixture::new().await;
    let runtime = fixture.runtime.clone();
    fixture.join("ebb");
    runtime.start(ID, "").await.unwrap();
    runtime.start("ebb", "").await.unwrap();

    runtime.kill(ID, "", 9, false).await.unwrap();
    runtime.process(ID, "").unwrap().wait().await;
    runtime.delete(ID).await.unwrap();
    runtime.shut_down();
    assert!(
        fixture.state.path().exists(),
        "the other one is still there"
    );
    runtime.kill("ebb", "", 15, false).await.unwrap();
    runtime.process("ebb", "").unwrap().wait().await;
    assert!(!fixture.state.path().exists());
    runtime.delete("ebb").await.unwrap();
    runtime.shut_down();

    let lives = [
        ("create", ID, 0),
        ("create", "ebb", 0),
        ("start", ID, 0),
        ("start", "ebb", 0),
        ("exit", ID, 137),
        ("delete", ID, 137),
        ("exit", "ebb", 143),
        ("delete", "ebb", 143),
    ];
    fixture.expect(&lives).await;
    fixture.shutdown.notified().await;
}
