//! The shim's three actions, as containerd calls them (runtime-v2.md): `start` puts a server into
//! the background and says where it listens, without an action it is that server, `delete` cleans
//! up after one that is gone.
//!
//! containerd 1.7 speaks version 2 of the task service and containerd 2 version 3, which differ in
//! the service's name alone: the server has both, and `start` announces the newer one that
//! containerd understands (`bootstrap`).

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use containerd_shim::asynchronous::spawn;
use containerd_shim::protos::api::DeleteResponse;
use containerd_shim::protos::shim_async::{Task, create_task};
use containerd_shim::{Flags, logger};
use log::info;
use protobuf::{Message, MessageField};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::bootstrap;
use crate::bundle;
use crate::cleanup;
use crate::config::Config;
use crate::container::LOST;
use crate::events::Events;
use crate::grouping;
use crate::hooks::{Hooks, Subject};
use crate::open_files;
use crate::rootfs;
use crate::runtime::Runtime;
use crate::share::Share;
use crate::state_dir::StateDir;
use crate::task_service::TaskService;

/// Runtime name of Hull.
pub const RUNTIME: &str = "io.containerd.hull.v2";

/// The bundle's file that says where the shim listens.
const ADDRESS_FILE: &str = "address";

const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

/// Carries out the action that containerd asks for.
///
/// # Errors
/// When it fails; the text is for containerd's log and, from `start`, for the user.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    match flags.action.as_str() {
        "start" => start(&flags).await,
        "delete" => delete(&flags).await,
        "" => serve(&flags).await,
        other => bail!("unknown action {other:?}; containerd calls start and delete"),
    }
}

async fn start(flags: &Flags) -> anyhow::Result<()> {
    let mut input = Vec::new();
    let stdin = std::io::stdin();
    // Somebody who tries this by hand need not type an end of file.
    if !stdin.is_terminal() {
        let read = stdin.take(bootstrap::MAX_INPUT).read_to_end(&mut input);
        read.context("read what containerd says on standard input")?;
    }
    let (mut options, answer) = bootstrap::read(&input, flags, |name| std::env::var(name).ok())?;
    if let Some(group) = bootstrap::shim_cgroup(&options)? {
        join_cgroup(&group)?;
    }
    // The library's own way into the cgroup finds none without controllers.
    options.extensions.clear();
    let own = options.socket_address(&flags.id);
    let address = match joined(flags, own)? {
        Some(address) => address,
        None => spawn(options, &flags.id, Vec::new()).await?,
    };
    // containerd 1.7 finds the shim again by this file of the bundle when it has been restarted, and
    // `delete` its socket.
    std::fs::write(".address", &address)
        .and_then(|()| std::fs::rename(".address", ADDRESS_FILE))
        .context("write the shim's address into the bundle")?;
    let answered = std::io::stdout().write_all(&answer.bytes(&address)?);
    answered.context("tell containerd the shim's address")
}

/// Where the shim of the sandbox listens that the container joins, if it joins one: as a rule because
/// its configuration says so; or it was the first of a machine in which others are left, which may be over by
/// now and not deleted. A shim that still serves at `own`, the address of a new one, is this one's.
fn joined(flags: &Flags, own: String) -> anyhow::Result<Option<String>> {
    if is_served(&own) {
        return Ok(Some(own));
    }
    let bundle = std::env::current_dir().context("find the bundle")?;
    // What may be wrong with either is Create's to say.
    let (Ok(config), Ok(spec)) = (Config::load(), bundle::load(&bundle)) else {
        return Ok(None);
    };
    let former = StateDir::at(&config.state, &flags.namespace, &flags.id)?;
    if let Some(address) = former.address().filter(|address| is_served(address)) {
        return Ok(Some(address));
    }
    let sandbox = grouping::sandbox(&spec, &config.state, &flags.namespace)?;
    Ok(sandbox.and_then(|sandbox| sandbox.address()))
}

/// Moves this process, and so the server that it starts, into a cgroup of the host's
/// (`shim_cgroup` of the runtime's options).
fn join_cgroup(group: &str) -> anyhow::Result<()> {
    let relative = Path::new(group.trim_start_matches('/'));
    let inside = relative
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !inside {
        bail!("shim_cgroup {group:?} is no path of a cgroup");
    }
    let procs = Path::new("/sys/fs/cgroup")
        .join(relative)
        .join("cgroup.procs");
    // 0 is who writes (cgroup-v2.rst).
    std::fs::write(&procs, "0").with_context(|| format!("move the shim into {group}"))
}

async fn delete(flags: &Flags) -> anyhow::Result<()> {
    let config = Config::load()?;
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().context("find the bundle")?,
        bundle => PathBuf::from(bundle),
    };
    let own = StateDir::at(&config.state, &flags.namespace, &flags.id)?;
    let state = own.sandbox();
    let socket = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    let mounts = bundle.join("rootfs");
    let served = socket.as_deref().is_some_and(is_served);
    let socket = socket.map(|address| socket_path(&address));
    if served && Share::has_others(&state, &flags.id) {
        // containerd asks, too, when the first container is deleted and its machine goes on.
        rootfs::unmount(&mounts)?;
    } else {
        // What was deleted in order has no folder any more, and its hooks have run.
        let was_there = own.path().exists() || own.path().is_symlink();
        cleanup::clean_up(&state, Some(&mounts))?;
        state.forget_member(&flags.id);
        if was_there {
            run_poststop(&bundle, &flags.id).await;
        }
    }
    if let Some(socket) = socket.filter(|_| !served) {
        remove_socket(&socket)?;
    }
    let response = DeleteResponse {
        exit_status: LOST,
        exited_at: MessageField::some(std::time::SystemTime::now().into()),
        ..Default::default()
    };
    response
        .write_to_writer(&mut std::io::stdout())
        .context("answer containerd")
}

/// Runs the `poststop` hooks of a container whose shim is gone (OCI runtime-spec 1.2, runtime.md
/// "Lifecycle", 12). Like everything about them, what fails is logged and no more.
async fn run_poststop(bundle: &Path, id: &str) {
    let hooks = bundle::load(bundle).map(|mut spec| Hooks::take(&mut spec));
    if let Ok(Ok(hooks)) = hooks {
        let subject = Subject {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            pid: 0,
        };
        hooks.stopped(&subject).await;
    }
}

async fn serve(flags: &Flags) -> anyhow::Result<()> {
    let socket = socket_path(&flags.socket);
    logger::init(flags.debug, "info", &flags.namespace, &flags.id)?;
    open_files::raise().context("raise the limit of open files")?;
    let (listener, bound) = listen(&socket)?;

    let address = std::env::var("TTRPC_ADDRESS").context("read TTRPC_ADDRESS")?;
    let (events, published) = Events::to_containerd(address, flags.namespace.clone());
    let shutdown = Arc::new(Notify::new());
    let runtime = Runtime::new(
        &flags.namespace,
        &flags.id,
        &flags.socket,
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

/// Which file a socket is. Its path can be another's by the time that this one ends.
struct Bound {
    device: u64,
    inode: u64,
}

impl Bound {
    fn at(socket: &Path) -> std::io::Result<Self> {
        let is = std::fs::symlink_metadata(socket)?;
        Ok(Self {
            device: is.dev(),
            inode: is.ino(),
        })
    }

    /// Removes it, and none that is there in its stead.
    fn remove(&self, socket: &Path) -> anyhow::Result<()> {
        let there = Self::at(socket);
        if there.is_ok_and(|there| (there.device, there.inode) == (self.device, self.inode)) {
            remove_socket(socket)?;
        }
        Ok(())
    }
}

/// Listens at the socket. One that is there was left by a shim that crashed: `start` puts none into the
/// background whose socket is served.
fn listen(socket: &Path) -> anyhow::Result<(UnixListener, Bound)> {
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    remove_socket(socket)?;
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    // root alone may ask for containers.
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .with_context(|| format!("restrict {}", socket.display()))?;
    let bound = Bound::at(socket).with_context(|| format!("look at {}", socket.display()))?;
    Ok((listener, bound))
}

/// Whether a shim listens there.
fn is_served(address: &str) -> bool {
    UnixStream::connect(socket_path(address)).is_ok()
}

fn socket_path(address: &str) -> PathBuf {
    let address = address.trim();
    address.strip_prefix("unix://").unwrap_or(address).into()
}

fn remove_socket(socket: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", socket.display()))
        }
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_removed_by_who_listens_there_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("shim.sock");
        let (former, formers) = listen(&socket).unwrap();
        let (_latter, latters) = listen(&socket).unwrap();
        formers.remove(&socket).unwrap();
        assert!(is_served(socket.to_str().unwrap()));
        latters.remove(&socket).unwrap();
        assert!(!socket.exists());
        latters.remove(&socket).unwrap();
        drop(former);
    }
}
