//! `startContainer` hooks (OCI runtime-spec 1.2, config.md "POSIX-platform Hooks"): programs of the
//! container's that run before its own.
//!
//! libcontainer would run them while the launcher still has the capabilities that it needs for itself,
//! and no seccomp profile. So they are the launcher's last step, as they are runc's.
//!
//! Threat: the image decides what these programs are. They are confined as the container's own is, and
//! none is waited for longer than the configuration has it.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, State};

/// How often a hook with a timeout is looked at. What waits for its end without looking takes a thread
/// or system calls that few seccomp profiles think of.
const INTERVAL: Duration = Duration::from_millis(10);

/// Why a hook has not done its work. The words are runc's.
#[derive(Debug, thiserror::Error)]
#[error("error running startContainer hook #{number}: {failure}")]
pub struct HookError {
    /// Its place among them, from 0.
    number: usize,
    failure: Failure,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Run(#[from] io::Error),
    #[error("{0}")]
    Status(ExitStatus),
    #[error("hook ran past specified timeout of {0:?}")]
    Timeout(Duration),
}

/// The hooks of a container, and what they are told of it.
#[derive(Clone, Debug)]
pub struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
}

impl StartHooks {
    /// Those of a container with this state, whose pid only its init knows.
    pub fn new(hooks: Vec<Hook>, state: State) -> Self {
        Self { hooks, state }
    }

    /// Runs one after the other; the calling process is the container's init. One without an
    /// environment gets `environment`.
    ///
    /// # Errors
    /// When one fails; those after it are not run.
    pub fn run(&self, environment: &[String]) -> Result<(), HookError> {
        let mut state = self.state.clone();
        // In the container's pid namespace, as with runc.
        state.set_pid(i32::try_from(std::process::id()).ok());
        for (number, hook) in self.hooks.iter().enumerate() {
            run(hook, &state, environment).map_err(|failure| HookError { number, failure })?;
        }
        Ok(())
    }
}

fn run(hook: &Hook, state: &State, environment: &[String]) -> Result<(), Failure> {
    let mut command = Command::new(hook.path());
    if let Some((name, args)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(args);
    }
    let environment = hook.env().as_deref().unwrap_or(environment);
    let variables = environment
        .iter()
        .filter_map(|variable| variable.split_once('='));
    let mut child = command
        .env_clear()
        .envs(variables)
        .stdin(input(state)?)
        .stdout(Stdio::null())
        .spawn()?;
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    match end(&mut child, timeout.map(Duration::from_secs))? {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Status(status)),
        Err(waited) => Err(Failure::Timeout(waited)),
    }
}

/// A pipe that has the state in it already: nobody has to wait for a hook to read it.
fn input(state: &State) -> io::Result<io::PipeReader> {
    let state = serde_json::to_vec(state)?;
    let (reader, mut writer) = io::pipe()?;
    rustix::pipe::fcntl_setpipe_size(&writer, state.len())?;
    writer.write_all(&state)?;
    Ok(reader)
}

/// Waits for the end of a process, or until it has run for too long and was killed.
fn end(child: &mut Child, timeout: Option<Duration>) -> io::Result<Result<ExitStatus, Duration>> {
    let Some(timeout) = timeout else {
        return child.wait().map(Ok);
    };
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ok(status));
        }
        if begin.elapsed() >= timeout {
            child.kill()?;
            child.wait()?;
            return Ok(Err(timeout));
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A hook that runs `script`, with `extra` in its object.
    fn hook(script: &str, extra: &str) -> Hook {
        let script = serde_json::json!(script);
        let json = format!(r#"{{"path": "/bin/sh", "args": ["sh", "-c", {script}] {extra}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn ran(hooks: Vec<Hook>, state: State) -> Result<(), String> {
        let environment = ["PATH=/usr/bin:/bin".to_owned(), "TIDE=high".to_owned()];
        let hooks = StartHooks::new(hooks, state);
        hooks.run(&environment).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_is_told_the_state_whole_and_its_pid() {
        let told = tempfile::NamedTempFile::new().unwrap();
        let mut state = State::default();
        // More than a pipe has room for by itself.
        let much = HashMap::from([("tide".to_owned(), "x".repeat(100_000))]);
        state.set_annotations(Some(much));

        ran(
            vec![hook(&format!("cat >{}", told.path().display()), "")],
            state.clone(),
        )
        .unwrap();

        state.set_pid(Some(std::process::id().try_into().unwrap()));
        assert_eq!(State::load(told.path()).unwrap(), state);
    }

    #[test]
    fn a_hook_without_an_environment_has_the_programs() {
        let hooks = vec![
            hook("test $TIDE = high", ""),
            hook("test -z $TIDE", r#", "env": ["NEAP=low"]"#),
        ];

        assert_eq!(ran(hooks, State::default()), Ok(()));
    }

    #[test]
    fn the_first_hook_that_fails_is_named_and_those_after_it_do_not_run() {
        let hooks = vec![
            hook("true", ""),
            hook("exit 3", ""),
            hook("kill -KILL $$", ""),
        ];

        let error = ran(hooks, State::default()).unwrap_err();

        let words = "error running startContainer hook #1: exit status: 3";
        assert_eq!(error, words);
    }

    #[test]
    fn a_hook_is_killed_after_its_timeout() {
        let hooks = vec![hook("exec sleep 1000", r#", "timeout": 1"#)];

        let error = ran(hooks, State::default()).unwrap_err();

        assert!(error.ends_with("timeout of 1s"), "{error}");
    }
}
