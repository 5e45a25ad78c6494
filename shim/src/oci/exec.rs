//! Further processes in a container.

use std::io;
use std::path::Path;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, User};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Deserialize;
use serde_json::Value;

use super::args::ExecArgs;
use super::error::OciError;
use super::folder::{Folder, Record};
use super::guard::Guard;
use super::lifecycle::{check_console, detached_streams, refuse_descriptors, write_pid_file};
use super::monitor::{self, Followed};
use super::relay::{Pipes, Streams};
use super::task::{SIGKILL, Task};
use super::terminal::Raw;
use crate::bundle;

/// `exec`; returns the process's exit status.
pub(super) async fn exec(root: &Path, args: &ExecArgs) -> Result<u8, OciError> {
    refuse_descriptors(args.preserve_fds)?;
    let folder = Folder::open(root, &args.id)?;
    let record = folder.record()?;
    let process = process(args, &record)?;
    let terminal = process["terminal"].as_bool().unwrap_or_default();
    check_console(terminal, args.detach, args.console_socket.is_some())?;
    let task = Task::connect(&folder).await.ok_or(OciError::NotRunning)?;
    let exec_id = exec_id().map_err(OciError::kernel("name the process"))?;
    let pipes = Pipes::of(&folder, &exec_id, terminal);
    let spec = process.to_string().into_bytes();
    let added = match pipes.make() {
        Ok(()) => task.exec(&exec_id, spec, &pipes.paths()).await,
        Err(error) => Err(error),
    };
    if let Err(error) = added {
        pipes.remove();
        return Err(error);
    }
    let ran = if args.detach {
        detach(&folder, &task, &exec_id, terminal, args).await
    } else {
        follow(&folder, &task, &exec_id, terminal, args).await
    };
    if ran.is_err() {
        // One that a monitor follows is over for that.
        let _ = task.delete(&exec_id).await;
        pipes.remove();
    }
    ran
}

async fn detach(
    folder: &Folder,
    task: &Task,
    exec_id: &str,
    terminal: bool,
    args: &ExecArgs,
) -> Result<u8, OciError> {
    let streams = detached_streams(args.console_socket.as_deref())?;
    let process = monitor::detach(folder, exec_id, terminal, &streams, None)?;
    task.start(exec_id).await?;
    write_pid_file(args.pid_file.as_deref(), process.pid)?;
    Ok(0)
}

async fn follow(
    folder: &Folder,
    task: &Task,
    exec_id: &str,
    terminal: bool,
    args: &ExecArgs,
) -> Result<u8, OciError> {
    let _raw = terminal.then(Raw::standard_input).transpose()?;
    let streams = Streams::own()?;
    let guard = Guard::start(folder, exec_id, false)?;
    let followed = Followed::new(folder, task.clone(), exec_id, terminal, streams, guard)?;
    task.start(exec_id).await?;
    // Who kills this program kills the process, as its guard sees to.
    let written = write_pid_file(args.pid_file.as_deref(), std::process::id());
    if written.is_err() {
        let _ = task.kill(exec_id, SIGKILL, false).await;
    }
    written?;
    Ok(followed.until_its_end().await)
}

/// The name of a process that has none: two at a time have no more in common than they need.
fn exec_id() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("exec-{:016x}", u64::from_ne_bytes(bytes)))
}

/// The process that is asked for: the file's, or one like the container's first.
fn process(args: &ExecArgs, record: &Record) -> Result<Value, OciError> {
    if let Some(path) = &args.process {
        let text = std::fs::read(path).map_err(OciError::file("read", path))?;
        return serde_json::from_slice(&text).map_err(|source| OciError::Json {
            what: "process",
            path: path.clone(),
            source,
        });
    }
    if args.args.is_empty() {
        let missing = "say what to run: a program, or --process";
        return Err(OciError::Refused(missing.to_owned()));
    }
    let spec = bundle::load(&record.bundle)?;
    let process = spec.process().clone().unwrap_or_default();
    let process = like(process, args).map_err(OciError::Refused)?;
    Ok(serde_json::to_value(process).expect("a process has strings for keys"))
}

/// The container's own process, changed as the options say.
fn like(mut process: Process, args: &ExecArgs) -> Result<Process, String> {
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process
        .set_args(Some(args.args.clone()))
        .set_env(Some(env))
        .set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &args.user {
        become_user(process.user_mut(), user)?;
    }
    if !args.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    for name in &args.cap {
        let found = Capability::deserialize(&Value::from(name.as_str()));
        let capability = found.map_err(|_| format!("unknown capability {name:?}"))?;
        let before = process.capabilities().clone().unwrap_or_else(none);
        process.set_capabilities(Some(with(before, capability)));
    }
    Ok(process)
}

/// No capabilities; the library's default has some.
fn none() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_ambient(None)
        .set_bounding(None)
        .set_effective(None)
        .set_inheritable(None)
        .set_permitted(None);
    none
}

fn with(mut sets: LinuxCapabilities, capability: Capability) -> LinuxCapabilities {
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(capability);
        Some(set)
    };
    let (bounding, effective, permitted) = (
        with(sets.bounding()),
        with(sets.effective()),
        with(sets.permitted()),
    );
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    sets
}

/// UID[:GID]: without the latter its groups are what they were, as with runc.
fn become_user(user: &mut User, text: &str) -> Result<(), String> {
    let (uid, gid) = text
        .split_once(':')
        .map_or((text, None), |(u, g)| (u, Some(g)));
    let number = |part: &str| {
        let number = part.parse::<u32>();
        number.map_err(|_| format!("--user {text:?}: it is UID[:GID], in numbers"))
    };
    user.set_uid(number(uid)?);
    if let Some(gid) = gid {
        user.set_gid(number(gid)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        exec: ExecArgs,
    }

    fn changed(line: &str) -> Result<Value, String> {
        let words = std::iter::once("exec").chain(line.split_whitespace());
        let process: Process = serde_json::from_value(json!({
            "cwd": "/home", "args": ["init"], "env": ["TIDE=low"], "terminal": true,
            "user": { "uid": 7, "gid": 7, "additionalGids": [5] },
        }))
        .unwrap();
        let changed = like(process, &Command::try_parse_from(words).unwrap().exec)?;
        Ok(serde_json::to_value(changed).unwrap())
    }

    #[test]
    fn a_process_is_like_the_containers_first_but_for_what_is_said() {
        let same = changed("sea ls -l").unwrap();
        assert_eq!(same["args"], json!(["ls", "-l"]));
        assert_eq!(
            (&same["cwd"], &same["user"]["uid"]),
            (&json!("/home"), &json!(7))
        );
        assert_eq!(same["terminal"], false);
        assert_eq!(same.get("capabilities"), None);
        let other =
            "-t --cwd /tmp -e TIDE=high -u 1:2 -g 3 --cap CAP_SYS_ADMIN --no-new-privs sea id";
        let other = changed(other).unwrap();
        assert_eq!(other["env"], json!(["TIDE=low", "TIDE=high"]));
        assert_eq!(
            other["user"],
            json!({ "uid": 1, "gid": 2, "additionalGids": [5, 3] })
        );
        assert_eq!(
            changed("-u 8 sea id").unwrap()["user"],
            json!({ "uid": 8, "gid": 7, "additionalGids": [5] })
        );
        assert_eq!(other["capabilities"]["effective"], json!(["CAP_SYS_ADMIN"]));
        assert_eq!(
            (&other["terminal"], &other["noNewPrivileges"]),
            (&json!(true), &json!(true))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(changed("-u root sea id").unwrap_err().contains("root"));
        assert!(
            changed("--cap CAP_TIDE sea id")
                .unwrap_err()
                .contains("CAP_TIDE")
        );
    }

    #[test]
    fn names_differ() {
        assert_ne!(exec_id().unwrap(), exec_id().unwrap());
    }
}
