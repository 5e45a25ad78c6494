//! Limits of a container that runs.

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::args::UpdateArgs;
use super::error::OciError;
use super::lifecycle::running;

/// Resources of more bytes are not read.
const MAX_RESOURCES: u64 = 1 << 20;

/// `update`.
pub(super) async fn update(root: &Path, args: &UpdateArgs) -> Result<(), OciError> {
    let task = running(root, &args.id).await?;
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => resources(args),
    };
    task.update(resources.to_string().into_bytes()).await
}

fn read(path: &Path) -> Result<Value, OciError> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_RESOURCES).read_to_end(&mut text)
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(MAX_RESOURCES).read_to_end(&mut text))
    };
    read.map_err(OciError::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json {
        what: "linux.resources",
        path: path.to_owned(),
        source,
    })
}

/// What the options say, as a configuration says it.
fn resources(args: &UpdateArgs) -> Value {
    let given = |parts: &[(&str, Value)]| {
        let parts = parts.iter().filter(|(_, value)| !value.is_null());
        Value::Object(
            parts
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
        )
    };
    let all = [
        (
            "memory",
            given(&[
                ("limit", json!(args.memory)),
                ("reservation", json!(args.memory_reservation)),
                ("swap", json!(args.memory_swap)),
            ]),
        ),
        (
            "cpu",
            given(&[
                ("quota", json!(args.cpu_quota)),
                ("period", json!(args.cpu_period)),
                ("shares", json!(args.cpu_share)),
                ("cpus", json!(args.cpuset_cpus)),
            ]),
        ),
        ("pids", given(&[("limit", json!(args.pids_limit))])),
    ];
    let said = all.into_iter().filter(|(_, part)| part != &json!({}));
    Value::Object(said.map(|(key, part)| (key.to_owned(), part)).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        update: UpdateArgs,
    }

    #[test]
    fn only_what_is_said_is_changed() {
        let of = |line: &str| {
            let words = std::iter::once("update").chain(line.split_whitespace());
            resources(&Command::try_parse_from(words).unwrap().update)
        };
        assert_eq!(of("tide"), json!({}));
        let said = of("--memory 1048576 --cpu-quota -1 --cpuset-cpus 0-1 --pids-limit 7 tide");
        let expected = json!({ "memory": { "limit": 1_048_576 },
            "cpu": { "quota": -1, "cpus": "0-1" }, "pids": { "limit": 7 } });
        assert_eq!(said, expected);
    }
}
