//! The shim, as containerd calls it (runtime-v2.md): without an action it is the server of a sandbox, which `start` has
//! put into the background (`actions`).
//!
//! containerd 1.7 speaks version 2 of the task service and containerd 2 version 3, which differ in
//! the service's name alone: the server has both, and `start` announces the newer one that
//! containerd understands (`bootstrap`).

use std::sync::Arc;

use anyhow::{Context, bail};
use containerd_shim::protos::shim_async::{Task, create_task};
use containerd_shim::{Flags, logger};
use log::info;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::actions;
use crate::events::Events;
use crate::instance::Instance;
use crate::open_files;
use crate::runtime::Runtime;
use crate::socket;
use crate::task_service::TaskService;

/// Runtime name of Hull.
pub const RUNTIME: &str = "io.containerd.hull.v2";

const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// Carries out the action that containerd asks for.
///
/// # Errors
/// When it fails; the text is for containerd's log and, from `start`, for the user.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    match flags.action.as_str() {
        "start" => actions::start(&flags).await,
        "delete" => actions::delete(&flags).await,
        "" => serve(&flags).await,
        other => bail!("unknown action {other:?}; containerd calls start and delete"),
    }
}

async fn serve(flags: &Flags) -> anyhow::Result<()> {
    let socket = socket::path_of(&flags.socket);
    logger::init(flags.debug, "info", &flags.namespace, &flags.id)?;
    open_files::raise().context("raise the limit of open files")?;
    let (listener, bound) = socket::listen(&socket)?;

    let address = std::env::var("TTRPC_ADDRESS").context("read TTRPC_ADDRESS")?;
    let (events, published) = Events::to_containerd(address, flags.namespace.clone());
    let shutdown = Arc::new(Notify::new());
    let bundle = std::env::current_dir().context("find the bundle")?;
    let runtime = Runtime::new(
        &flags.namespace,
        &flags.id,
        &flags.socket,
        Instance::new(&flags.address, &bundle),
        events,
        Arc::clone(&shutdown),
    );
    let task: Arc<dyn Task + Send + Sync> = Arc::new(TaskService::new(runtime));
    let mut server = Server::new().add_listener(Listener::from(listener));
    for name in [TASK_V2, TASK_V3] {
        let services = create_task(Arc::clone(&task));
        let renamed = services
            .into_values()
            .map(|service| (name.to_owned(), service));
        server = server.register_service(renamed.collect());
    }
    drop(task);
    server.start().await.context("serve the task service")?;
    // `start` waits for the end of our standard output.
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("close standard output")?;
    info!("serving at {}", socket.display());

    ended(&shutdown).await?;
    server.shutdown().await.context("stop serving")?;
    bound.remove(&socket)?;
    drop(server);
    // The last event is containerd's before the process is gone.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), published).await;
    Ok(())
}

/// Waits until the shim is to end. Signals that containerd's own shims ignore are ignored too: a
/// container ends when containerd says so.
async fn ended(shutdown: &Notify) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = shutdown.notified() => return Ok(()),
            _ = terminate.recv() => info!("SIGTERM is ignored"),
            _ = interrupt.recv() => info!("SIGINT is ignored"),
        }
    }
}
