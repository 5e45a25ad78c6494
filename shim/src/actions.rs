//! What containerd has done by a shim that is not to stay: `start`, which puts a server into the background, and
//! `delete`, which cleans up after one that is gone (runtime-v2.md).

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use containerd_shim::Flags;
use containerd_shim::asynchronous::spawn;
use containerd_shim::protos::api::DeleteResponse;
use protobuf::{Message, MessageField};

use crate::bootstrap;
use crate::bundle;
use crate::cleanup::{self, CleanupError};
use crate::config::{self, Config};
use crate::container::LOST;
use crate::error::chain;
use crate::grouping;
use crate::hooks::{Hooks, Subject};
use crate::rootfs;
use crate::share::Share;
use crate::socket;
use crate::state_dir::StateDir;

/// The bundle's file that says where the shim listens.
const ADDRESS_FILE: &str = "address";

/// The bundle's file that says where the sandboxes' state is, for `delete`.
const STATE_FILE: &str = "hull-state";

/// `start`: puts the server of a new sandbox into the background, unless the container joins another one; tells where it
/// listens.
///
/// # Errors
/// When it fails; the text is for the user.
pub async fn start(flags: &Flags) -> anyhow::Result<()> {
    let input = bootstrap::standard_input()?;
    let (mut options, answer) = bootstrap::read(&input, flags, |name| std::env::var(name).ok())?;
    if let Some(group) = bootstrap::shim_cgroup(&options)? {
        join_cgroup(&group)?;
    }
    let named = bootstrap::config_path(&options)?;
    let config = match &named {
        Some(path) => {
            let read = Config::read(path.as_ref());
            Some(read.context("the runtime's options (ConfigPath)")?)
        }
        // What may be wrong with it is Create's to say.
        None => Config::load().ok(),
    };
    // The library's own way into the cgroup finds none without controllers.
    options.extensions.clear();
    let own = options.socket_address(&flags.id);
    let state = config.as_ref().map(|config| config.state.as_path());
    if let Some(state) = state {
        note(STATE_FILE, state.as_os_str().as_bytes()).context("note where the state is")?;
    }
    let address = match joined(flags, own, state)? {
        Some(address) => address,
        None => {
            let variable = named.as_deref().map(|path| (config::VARIABLE, path));
            spawn(options, &flags.id, variable.into_iter().collect()).await?
        }
    };
    // containerd 1.7 finds the shim again by this file when it has been restarted, and `delete` its socket.
    note(ADDRESS_FILE, address.as_bytes()).context("write the shim's address into the bundle")?;
    let answered = std::io::stdout().write_all(&answer.bytes(&address)?);
    answered.context("tell containerd the shim's address")
}

/// Writes a file of the bundle, which this process is in, all at once.
fn note(name: &str, text: &[u8]) -> io::Result<()> {
    let new = format!(".{name}");
    std::fs::write(&new, text)?;
    std::fs::rename(new, name)
}

/// Where the shim of the sandbox listens that the container joins, if it joins one: as a rule because
/// its configuration says so; or it was the first of a machine in which others are left, which may be over by
/// now and not deleted. A shim that still serves at `own`, the address of a new one, is this one's. `state` is where
/// sandboxes are, as far as that is known.
fn joined(flags: &Flags, own: String, state: Option<&Path>) -> anyhow::Result<Option<String>> {
    if socket::is_served(&own) {
        return Ok(Some(own));
    }
    let bundle = std::env::current_dir().context("find the bundle")?;
    // What may be wrong with it is Create's to say.
    let (Some(state), Ok(spec)) = (state, bundle::load(&bundle)) else {
        return Ok(None);
    };
    let former = StateDir::at(state, &flags.namespace, &flags.id)?;
    if let Some(address) = former
        .address()
        .filter(|address| socket::is_served(address))
    {
        return Ok(Some(address));
    }
    let sandbox = grouping::sandbox(&spec, state, &flags.namespace)?;
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

/// `delete`: cleans up after a shim that is gone. Again is no error.
///
/// # Errors
/// When something is left; the text is for containerd's log.
pub async fn delete(flags: &Flags) -> anyhow::Result<()> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().context("find the bundle")?,
        bundle => PathBuf::from(bundle),
    };
    let state = state_folder(&bundle, &flags.id);
    let own = StateDir::at(&state, &flags.namespace, &flags.id)?;
    let state = own.sandbox();
    let socket = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    let socket = socket.or_else(|| state.address());
    let mounts = bundle.join("rootfs");
    let served = socket.as_deref().is_some_and(socket::is_served);
    let socket = socket.map(|address| socket::path_of(&address));
    if served && Share::has_others(&state, &flags.id) {
        // containerd asks, too, when the first container is deleted and its machine goes on.
        rootfs::unmount(&mounts)?;
    } else {
        // What was deleted in order has no folder any more, and its hooks have run.
        let was_there = own.path().exists() || own.path().is_symlink();
        match cleanup::clean_up(&state, Some(&mounts)) {
            Err(e @ CleanupError::Processes(_)) => eprintln!("clean up after {}: {e}", flags.id),
            cleaned => cleaned?,
        }
        state.forget_member(&flags.id);
        if was_there {
            run_poststop(&bundle, &flags.id).await;
        }
    }
    if let Some(socket) = socket.filter(|_| !served) {
        socket::remove(&socket)?;
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

/// Where the state of the bundle's sandbox is. containerd says no options to `delete`, and the configuration may be
/// another by now: so `start` has noted it, unless it was that of an earlier Hull, or found none.
fn state_folder(bundle: &Path, id: &str) -> PathBuf {
    if let Ok(noted) = std::fs::read(bundle.join(STATE_FILE)) {
        return OsString::from_vec(noted).into();
    }
    let (state, wrong) = Config::state_to_clean_up();
    if let Some(error) = wrong {
        // containerd logs it as a warning.
        eprintln!(
            "clean up after {id} in {}: {}",
            state.display(),
            chain(&error)
        );
    }
    state
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_finds_the_state_that_start_has_noted() {
        let bundle = tempfile::tempdir().unwrap();
        let configured = Config::load().unwrap().state;
        assert_eq!(state_folder(bundle.path(), "tide"), configured);
        std::fs::write(bundle.path().join(STATE_FILE), "/run/other").unwrap();
        assert_eq!(state_folder(bundle.path(), "tide"), Path::new("/run/other"));
    }
}
