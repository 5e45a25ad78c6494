//! Hooks of the configuration (OCI runtime-spec 1.2, config.md "POSIX-platform Hooks").
//!
//! | hook | runs | because |
//! |---|---|---|
//! | `prestart`, `createRuntime` | here, once the machine runs | its program is the host's, and the pid it is told has the container's network |
//! | `createContainer` | nowhere: it is refused | its program is the host's, its namespaces are the guest's |
//! | `startContainer` | in the guest, by the agent | its program is the container's |
//! | `poststart` | here, after Start | as above |
//! | `poststop` | here, when the machine is gone | as above |

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use log::warn;
use oci_spec::runtime::{Hook, Spec};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::bundle::Unsupported;
use crate::error::chain;
use crate::open_files;

/// Characters of a failed hook's standard error that are told.
const LAST_WORDS: usize = 400;

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Its program cannot be run.
    #[error("run the hook {}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the hook {} failed: {status}: {said}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its last words.
        said: String,
    },
    /// It took longer than the configuration allows.
    #[error("the hook {} took longer than {} s", path.display(), timeout.as_secs())]
    Timeout {
        /// The program.
        path: PathBuf,
        /// Its `timeout`.
        timeout: Duration,
    },
}

/// What the container does, in the words of the specification's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being created.
    Creating,
    /// Its program runs.
    Running,
    /// It is gone.
    Stopped,
}

/// The hooks of one container that run on the host, and what they are told of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hooks {
    create: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
    version: String,
    annotations: HashMap<String, String>,
}

/// The container that hooks are told of.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// The process that containerd is told.
    pub pid: u32,
}

impl Hooks {
    /// Takes the host's hooks out of a configuration; the guest's stay.
    ///
    /// # Errors
    /// For `createContainer`, and what breaks the specification's rules.
    pub fn take(spec: &mut Spec) -> Result<Self, Unsupported> {
        let Some(mut all) = spec.hooks().clone() else {
            return Ok(Self::default());
        };
        let is_there = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|it| !it.is_empty());
        if is_there(all.create_container()) {
            return Err(Unsupported::new(
                "hooks.createContainer",
                "its program is the host's and its namespaces are the guest's; createRuntime runs on \
                 the host, startContainer in the guest",
            ));
        }
        let prestart = all.prestart().clone();
        let mut create = prestart.unwrap_or_default();
        create.extend(all.create_runtime().clone().unwrap_or_default());
        let taken = Self {
            create,
            poststart: all.poststart().clone().unwrap_or_default(),
            poststop: all.poststop().clone().unwrap_or_default(),
            version: spec.version().clone(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        };
        for hook in [&taken.create, &taken.poststart, &taken.poststop]
            .into_iter()
            .flatten()
        {
            if !hook.path().is_absolute() {
                return Err(Unsupported::new("hooks[].path", "it is an absolute path"));
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(Unsupported::new(
                    "hooks[].timeout",
                    "it is greater than zero",
                ));
            }
        }
        all.set_prestart(None);
        all.set_create_runtime(None)
            .set_poststart(None)
            .set_poststop(None);
        let left = is_there(all.start_container()).then_some(all);
        spec.set_hooks(left);
        Ok(taken)
    }

    /// Runs `prestart` and `createRuntime`.
    ///
    /// # Errors
    /// The first that fails; the others are not run.
    pub async fn created(&self, subject: &Subject) -> Result<(), HookError> {
        self.run(&self.create, subject, Status::Creating).await
    }

    /// Runs `poststart`.
    ///
    /// # Errors
    /// The first that fails; the others are not run.
    pub async fn started(&self, subject: &Subject) -> Result<(), HookError> {
        self.run(&self.poststart, subject, Status::Running).await
    }

    /// Runs `poststop`, all of them: what fails is logged.
    pub async fn stopped(&self, subject: &Subject) {
        for hook in &self.poststop {
            let one = std::slice::from_ref(hook);
            if let Err(e) = self.run(one, subject, Status::Stopped).await {
                warn!("{}", chain(&e));
            }
        }
    }

    async fn run(
        &self,
        hooks: &[Hook],
        subject: &Subject,
        status: Status,
    ) -> Result<(), HookError> {
        let state = self.state(subject, status);
        for hook in hooks {
            run(hook, &state, &subject.bundle).await?;
        }
        Ok(())
    }

    /// The state (runtime-spec 1.2, runtime.md "State") as JSON.
    fn state(&self, subject: &Subject, status: Status) -> Vec<u8> {
        let status = match status {
            Status::Creating => "creating",
            Status::Running => "running",
            Status::Stopped => "stopped",
        };
        serde_json::json!({
            "ociVersion": self.version,
            "id": subject.id,
            "status": status,
            "pid": subject.pid,
            "bundle": subject.bundle,
            "annotations": self.annotations,
        })
        .to_string()
        .into_bytes()
    }
}

async fn run(hook: &Hook, state: &[u8], bundle: &Path) -> Result<(), HookError> {
    let path = hook.path();
    let failed = |source| HookError::Run {
        path: path.clone(),
        source,
    };
    let mut args = hook.args().iter().flatten();
    let mut command = Command::new(path);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let variables = hook.env().iter().flatten();
    command
        .args(args)
        .env_clear()
        .envs(variables.filter_map(|variable| variable.split_once('=')))
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    open_files::give(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let told = async move {
        // A hook need not read it.
        let _ = stdin.write_all(state).await;
    };
    let ended = async { tokio::join!(told, child.wait_with_output()).1 };
    let output = match hook
        .timeout()
        .and_then(|timeout| u64::try_from(timeout).ok())
    {
        None => ended.await,
        Some(seconds) => {
            let timeout = Duration::from_secs(seconds);
            let in_time = tokio::time::timeout(timeout, ended).await;
            in_time.map_err(|_| HookError::Timeout {
                path: path.clone(),
                timeout,
            })?
        }
    };
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let last = said.char_indices().rev().nth(LAST_WORDS - 1);
    let said = said[last.map_or(0, |(at, _)| at)..].to_owned();
    Err(HookError::Failed {
        path: path.clone(),
        status: output.status,
        said,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(hooks: &Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "root": { "path": "rootfs" },
            "annotations": { "tide": "high" },
            "hooks": hooks,
        }))
        .unwrap()
    }

    fn subject(bundle: &Path) -> Subject {
        Subject {
            id: "tide".into(),
            bundle: bundle.into(),
            pid: 7,
        }
    }

    fn shell(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["hook", "-c", script], "env": ["WHO=moon"] })
    }

    #[tokio::test]
    async fn the_hosts_hooks_run_in_order_and_are_told_the_state() {
        let bundle = tempfile::tempdir().unwrap();
        let mut spec = spec(&json!({
            "prestart": [shell("echo prestart $WHO $0 >>log")],
            "createRuntime": [shell("cat >>log")],
            "startContainer": [shell("true")],
        }));

        let hooks = Hooks::take(&mut spec).unwrap();
        hooks.created(&subject(bundle.path())).await.unwrap();

        let log = std::fs::read_to_string(bundle.path().join("log")).unwrap();
        let (first, state) = log.split_once('\n').unwrap();
        assert_eq!(first, "prestart moon hook");
        let state: Value = serde_json::from_str(state).unwrap();
        assert_eq!(state["status"], "creating");
        assert_eq!((&state["id"], &state["pid"]), (&json!("tide"), &json!(7)));
        assert_eq!(state["annotations"]["tide"], "high");
        let left = serde_json::to_value(spec.hooks()).unwrap();
        let left: Vec<_> = left.as_object().unwrap().keys().collect();
        assert_eq!(left, ["startContainer"]);
    }

    #[tokio::test]
    async fn a_hook_that_fails_or_hangs_is_an_error_with_its_words() {
        let bundle = tempfile::tempdir().unwrap();
        let run = async |hook: Value| {
            let hooks = Hooks::take(&mut spec(&json!({ "poststart": [hook] }))).unwrap();
            let failed = hooks.started(&subject(bundle.path())).await;
            chain(&failed.unwrap_err())
        };

        let failed = run(shell("echo no water >&2; exit 3")).await;
        assert!(
            failed.contains("/bin/sh") && failed.contains("no water"),
            "{failed}"
        );
        let much =
            "i=0; while [ $i -lt 999 ]; do echo -n ebb >&2; i=$((i+1)); done; echo low >&2; exit 1";
        let wordy = run(shell(much)).await;
        assert!(wordy.ends_with("ebblow"), "{wordy}");
        assert!(wordy.len() < 600, "{wordy}");
        let missing = run(json!({ "path": "/no/such/hook" })).await;
        assert!(missing.contains("/no/such/hook"), "{missing}");
        let hangs = json!({ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 });
        assert!(run(hangs).await.contains("longer than 1 s"));
    }

    #[test]
    fn what_cannot_run_is_refused() {
        for (hooks, field) in [
            (
                json!({ "createContainer": [shell("true")] }),
                "hooks.createContainer",
            ),
            (json!({ "poststop": [{ "path": "bin/x" }] }), "hooks[].path"),
            (
                json!({ "poststop": [{ "path": "/x", "timeout": 0 }] }),
                "hooks[].timeout",
            ),
        ] {
            let refused = Hooks::take(&mut spec(&hooks)).unwrap_err();
            assert!(refused.to_string().contains(field), "{refused}");
        }
    }
}
