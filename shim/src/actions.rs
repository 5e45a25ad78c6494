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
use crate::instance::Instance;
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
    let bundle = std::env::current_dir().context("find the bundle")?;
    let instance = Instance::new(&options.address, &bundle);
    let state = config.as_ref().map(|config| config.state.as_path());
    if let Some(state) = state {
        note(STATE_FILE, state.as_os_str().as_bytes()).context("note where the state is")?;
    }
    let address = match joined(flags, own, &bundle, state, &instance)? {
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
fn joined(
    flags: &Flags,
    own: String,
    bundle: &Path,
    state: Option<&Path>,
    instance: &Instance,
) -> anyhow::Result<Option<String>> {
    if socket::is_served(&own) {
        return Ok(Some(own));
    }
    let Some(state) = state else {
        return Ok(None);
    };
    let former = StateDir::at(state, &flags.namespace, &flags.id)?;
    if let Some(address) = former
        .address()
        .filter(|address| socket::is_served(address))
    {
        former.check_is_of(instance)?;
        return Ok(Some(address));
    }
    // What may be wrong with it is Create's to say.
    let Ok(spec) = bundle::load(bundle) else {
        return Ok(None);
    };
    let sandbox = grouping::sandbox(&spec, state, &flags.namespace, instance)?;
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
    let of_another = state.check_is_of(&Instance::new(&flags.address, &bundle));
    if let Err(in_use) = &of_another {
        eprintln!("clean up nothing but the bundle: {in_use}");
    }
    let socket = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    let socket = socket.or_else(|| of_another.is_ok().then(|| state.address())?);
    let mounts = bundle.join("rootfs");
    let served = socket.as_deref().is_some_and(socket::is_served);
    let socket = socket.map(|address| socket::path_of(&address));
    if of_another.is_err() || served && Share::has_others(&state, &flags.id) {
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

    /// What containerd `name` calls the shim of `sea/tide` with.
    fn flags(root: &Path, name: &str) -> Flags {
        let bundle = root.join(name).join("tide");
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(
            bundle.join(STATE_FILE),
            root.join("state").to_str().unwrap(),
        )
        .unwrap();
        Flags {
            id: "tide".into(),
            namespace: "sea".into(),
            address: format!("/run/{name}.sock"),
            bundle: bundle.to_str().unwrap().to_owned(),
            ..Default::default()
        }
    }

    fn instance(flags: &Flags) -> Instance {
        Instance::new(&flags.address, Path::new(&flags.bundle))
    }

    #[test]
    fn a_shim_that_serves_another_containerd_is_not_this_ones_by_its_containers_name() {
        let root = tempfile::tempdir().unwrap();
        let (one, another) = (flags(root.path(), "one"), flags(root.path(), "another"));
        let folder = root.path().join("state");
        let state = StateDir::at(&folder, "sea", "tide").unwrap();
        state.create().unwrap();
        let socket = root.path().join("shim.sock");
        let _shim = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        state.note_address(&address).unwrap();
        state.note_instance(&instance(&one)).unwrap();
        let joined = |flags: &Flags| {
            let (own, bundle) = ("unix:///none".into(), Path::new(&flags.bundle));
            joined(flags, own, bundle, Some(&folder), &instance(flags))
        };

        assert_eq!(joined(&one).unwrap(), Some(address));
        let error = joined(&another).unwrap_err().to_string();
        let expected = "sea/tide (containerd namespace/container) is in use by another containerd (/run/one.sock)";
        assert!(error.starts_with(expected), "{error}");
    }

    #[tokio::test]
    async fn delete_cleans_up_what_is_of_the_containerd_that_asks() {
        let root = tempfile::tempdir().unwrap();
        let (one, another) = (flags(root.path(), "one"), flags(root.path(), "another"));
        let state = StateDir::at(&root.path().join("state"), "sea", "tide").unwrap();
        state.create().unwrap();
        state.note_instance(&instance(&one)).unwrap();
        let mut machine = std::process::Command::new("sleep");
        let mut machine = machine.arg("1000").spawn().unwrap();
        state.note_process(machine.id()).unwrap();

        delete(&another).await.unwrap();
        assert!(machine.try_wait().unwrap().is_none());
        assert!(state.path().exists());

        let reaper = std::thread::spawn(move || machine.wait().unwrap());
        delete(&one).await.unwrap();
        assert!(!reaper.join().unwrap().success());
        assert!(!state.path().exists());
    }

    #[test]
    fn delete_finds_the_state_that_start_has_noted() {
        let bundle = tempfile::tempdir().unwrap();
        let configured = Config::load().unwrap().state;
        assert_eq!(state_folder(bundle.path(), "tide"), configured);
        std::fs::write(bundle.path().join(STATE_FILE), "/run/other").unwrap();
        assert_eq!(state_folder(bundle.path(), "tide"), Path::new("/run/other"));
    }
}
