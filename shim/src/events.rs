//! Events for containerd, in the order in which they happened.
//!
//! One task sends them, each acknowledged before the next; who publishes does not wait. When
//! containerd restarts, the task connects again and goes on.

use std::time::Duration;

use containerd_shim::protos::api::ForwardRequest;
use containerd_shim::protos::shim::event::Envelope;
use containerd_shim::protos::shim_async::{Client, EventsClient};
use containerd_shim::protos::{events::task as event, topics};
use containerd_shim::util::{convert_to_any, timestamp};
use log::{error, warn};
use protobuf::MessageDyn;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// Who takes the events of a shim that has no containerd behind it: where it would listen.
pub const NOBODY: &str = "none";

/// How often and how far apart an event is tried before it is given up.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// An event of a task.
#[derive(Debug)]
pub enum TaskEvent {
    /// A container was created.
    Create(event::TaskCreate),
    /// Its init runs.
    Start(event::TaskStart),
    /// A further process was added.
    ExecAdded(event::TaskExecAdded),
    /// It runs.
    ExecStarted(event::TaskExecStarted),
    /// A process ended.
    Exit(event::TaskExit),
    /// A container is gone.
    Delete(event::TaskDelete),
    /// A container stands still.
    Paused(event::TaskPaused),
    /// It goes on.
    Resumed(event::TaskResumed),
    /// The guest's kernel killed a process of it for memory.
    Oom(event::TaskOOM),
}

impl TaskEvent {
    fn into_parts(self) -> (&'static str, Box<dyn MessageDyn>) {
        match self {
            Self::Create(event) => (topics::TASK_CREATE_EVENT_TOPIC, Box::new(event)),
            Self::Start(event) => (topics::TASK_START_EVENT_TOPIC, Box::new(event)),
            Self::ExecAdded(event) => (topics::TASK_EXEC_ADDED_EVENT_TOPIC, Box::new(event)),
            Self::ExecStarted(event) => (topics::TASK_EXEC_STARTED_EVENT_TOPIC, Box::new(event)),
            Self::Exit(event) => (topics::TASK_EXIT_EVENT_TOPIC, Box::new(event)),
            Self::Delete(event) => (topics::TASK_DELETE_EVENT_TOPIC, Box::new(event)),
            Self::Paused(event) => (topics::TASK_PAUSED_EVENT_TOPIC, Box::new(event)),
            Self::Resumed(event) => (topics::TASK_RESUMED_EVENT_TOPIC, Box::new(event)),
            Self::Oom(event) => (topics::TASK_OOM_EVENT_TOPIC, Box::new(event)),
        }
    }
}

/// Where events are published.
#[derive(Debug, Clone)]
pub struct Events(UnboundedSender<TaskEvent>);

impl Events {
    /// Starts the task that sends events to containerd at `address`, or to [`NOBODY`]; it ends when every clone of
    /// the publisher is gone and the last event is sent.
    #[must_use]
    pub fn to_containerd(address: String, namespace: String) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = unbounded_channel();
        (
            Self(sender),
            tokio::spawn(send_all(receiver, address, namespace)),
        )
    }

    /// Keeps events for a test to look at.
    #[cfg(test)]
    pub fn kept() -> (Self, UnboundedReceiver<TaskEvent>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    /// Publishes an event.
    pub fn publish(&self, event: TaskEvent) {
        // The task lives as long as any publisher.
        let _ = self.0.send(event);
    }
}

async fn send_all(mut events: UnboundedReceiver<TaskEvent>, address: String, namespace: String) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        if address == NOBODY {
            continue;
        }
        let (topic, event) = event.into_parts();
        let envelope = convert_to_any(event).and_then(|event| {
            let mut envelope = Envelope::new();
            envelope.set_timestamp(timestamp()?);
            envelope.set_namespace(namespace.clone());
            envelope.set_topic(topic.to_owned());
            envelope.set_event(event);
            Ok(envelope)
        });
        match envelope {
            Ok(envelope) => send(&mut client, &address, envelope).await,
            Err(e) => error!("encode event {topic}: {e}"),
        }
    }
}

async fn send(client: &mut Option<EventsClient>, address: &str, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let mut request = ForwardRequest::new();
    request.set_envelope(envelope);
    for attempt in 1..=TRIES {
        if client.is_none() {
            match Client::connect(&format!("unix://{address}")).await {
                Ok(connected) => *client = Some(EventsClient::new(connected)),
                Err(e) => warn!("connect to containerd at {address}: {e}"),
            }
        }
        if let Some(events) = client {
            let context = ttrpc::context::with_duration(Duration::from_secs(5));
            match events.forward(context, &request).await {
                Ok(_) => return,
                Err(e) => warn!("publish {topic}, try {attempt}: {e}"),
            }
        }
        *client = None;
        tokio::time::sleep(PAUSE).await;
    }
    error!("event {topic} is lost: containerd does not take it");
}
