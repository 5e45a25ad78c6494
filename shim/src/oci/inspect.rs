//! What there is to tell: of a container, of all, of the runtime.

use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::args::{Format, ListArgs, PsArgs, SpecArgs};
use super::error::OciError;
use super::folder::Folder;
use super::task::{STOPPED, Task};

/// `state` (runtime-spec 1.2, runtime.md "State", and what runc adds).
pub(super) async fn state(root: &Path, id: &str) -> Result<Value, OciError> {
    described(&Folder::open(root, id)?).await
}

async fn described(folder: &Folder) -> Result<Value, OciError> {
    let record = folder.record()?;
    let found = match Task::connect(folder).await {
        // It may end while it is asked.
        Some(task) => task.state().await.unwrap_or(STOPPED),
        None => STOPPED,
    };
    let pid = match found.pid {
        0 => 0,
        pid => record.pid().unwrap_or(pid),
    };
    Ok(json!({
        "ociVersion": record.oci_version,
        "id": folder.id,
        "pid": pid,
        "status": found.status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    }))
}

/// `list`, as text.
pub(super) async fn list(root: &Path, args: &ListArgs) -> String {
    let mut states = Vec::new();
    for folder in Folder::all(root) {
        // One that is being made or removed is none.
        states.extend(described(&folder).await);
    }
    let text = |state: &Value, key: &str| match &state[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match (args.quiet, args.format) {
        (true, _) => states
            .iter()
            .map(|state| text(state, "id") + "\n")
            .collect(),
        (false, Format::Json) => Value::Array(states).to_string() + "\n",
        (false, Format::Table) => {
            let keys = ["id", "pid", "status", "bundle", "created", "owner"];
            let head = keys.map(str::to_uppercase).to_vec();
            let rows = states
                .iter()
                .map(|state| keys.map(|key| text(state, key)).to_vec());
            table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
        }
    }
}

/// Rows of equally many cells, in columns.
fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate();
        let padded: Vec<_> = cells
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        padded.join("   ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// `ps`: pids on the host. The first process's is that of who follows it, as `state` tells it; the others' are their
/// stand-ins' (docs/shim.md, "Processes").
pub(super) async fn ps(root: &Path, args: &PsArgs) -> Result<String, OciError> {
    let folder = Folder::open(root, &args.id)?;
    let record = folder.record()?;
    if args.format == Format::Table || !args.args.is_empty() {
        return Err(OciError::Refused(
            "the host's ps does not know the guest's processes; use --format json, or run ps inside".into(),
        ));
    }
    let task = Task::connect(&folder).await.ok_or(OciError::NotRunning)?;
    let task_pid = task.state().await?.pid;
    let known = record.pid();
    let pids = task.pids().await?.into_iter();
    let pids: Vec<_> = pids
        .map(|pid| known.filter(|_| pid == task_pid).unwrap_or(pid))
        .collect();
    Ok(json!(pids).to_string())
}

/// `features` (runtime-spec 1.2, features.md).
#[must_use]
pub fn features() -> Value {
    let (allow, no) = (json!({ "enabled": true }), json!({ "enabled": false }));
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": true, "systemdUser": false, "rdma": false },
            "seccomp": allow,
            "apparmor": no,
            "selinux": no,
            "intelRdt": no,
            "mountExtensions": { "idmap": allow },
        },
    })
}

/// `spec`.
pub(super) fn spec(args: &SpecArgs) -> Result<(), OciError> {
    let bundle = args.bundle.as_deref().unwrap_or(Path::new("."));
    let path = bundle.join("config.json");
    let text = serde_json::to_vec_pretty(&Spec::default()).expect("its maps have strings for keys");
    std::fs::File::create_new(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &text))
        .map_err(OciError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["ID", "PID"], ["tide", "7"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "ID     PID\ntide   7\n");
    }

    #[tokio::test]
    async fn a_root_that_is_not_there_has_no_containers() {
        let args = ListArgs {
            format: Format::Json,
            quiet: false,
        };
        assert_eq!(list("/no/such".as_ref(), &args).await, "[]\n");
    }

    #[test]
    fn a_configuration_is_written_and_never_over_another() {
        let bundle = tempfile::tempdir().unwrap();
        let args = SpecArgs {
            bundle: Some(bundle.path().to_owned()),
        };
        spec(&args).unwrap();
        crate::bundle::load(bundle.path()).unwrap();
        assert!(spec(&args).is_err());
    }
}
