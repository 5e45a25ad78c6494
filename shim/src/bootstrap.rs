//! How containerd tells a starting shim what it needs, and is told where it listens
//! (containerd's docs/runtime-v2.md §start, §bootstrap-protocol).
//!
//! Since containerd 2.3 both are protobuf messages on standard input and output. Older ones use
//! flags, the environment, runtime options on standard input, and JSON.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim::protos::shim::oci::Options;
use containerd_shim::{Flags, StartOpts};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, UnknownValueRef};

/// Input that is longer is cut: containerd's own limit.
const MAX_INPUT: u64 = 10 << 20;

/// The newest version of the task service.
const NEWEST: u32 = 3;

/// How the shim's address is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// As JSON, announcing this version of the task service.
    Json(u32),
    /// As a `BootstrapResult`.
    Message,
}

/// Reads standard input to its end.
///
/// # Errors
/// What the kernel says.
pub fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = std::io::stdin();
    // Somebody who tries this by hand need not type an end of file.
    if !stdin.is_terminal() {
        let read = stdin.take(MAX_INPUT).read_to_end(&mut input);
        read.context("read what containerd says on standard input")?;
    }
    Ok(input)
}

/// Reads what containerd has said: `input` is standard input, `variable` looks into the environment.
///
/// # Errors
/// When it is meant for another shim, or does not name containerd's address for events.
pub fn read(
    input: &[u8],
    flags: &Flags,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<(StartOpts, Answer)> {
    let (options, answer) = match message(input, flags)? {
        Some(params) => (StartOpts::from(params), Answer::Message),
        None => (
            older(input, flags, variable("TTRPC_ADDRESS")),
            Answer::Json(version(variable("MAX_SHIM_VERSION").as_deref())),
        ),
    };
    if options.ttrpc_address.is_empty() {
        bail!("containerd does not say where it takes events (TTRPC_ADDRESS)");
    }
    Ok((options, answer))
}

/// The cgroup that the runtime's options want the shim in, if they do: runc's options, or those that
/// containerd 1.7's client sends to any other runtime.
///
/// # Errors
/// When they are not what their type says.
pub fn shim_cgroup(options: &StartOpts) -> anyhow::Result<Option<String>> {
    /// Of `containerd.linux.runc.CreateOptions`.
    const SHIM_CGROUP: u32 = 9;
    let older = find(options, "containerd.linux.runc.CreateOptions");
    let group = if let Some(any) = older {
        text(any, SHIM_CGROUP, "shim_cgroup")?
    } else {
        let runc = options.extension::<Options>()?;
        runc.map(|runc| runc.shim_cgroup).unwrap_or_default()
    };
    Ok(Some(group).filter(|group| !group.is_empty()))
}

/// The file that the runtime's options name as Hull's configuration (`ConfigPath`), if they do. dockerd, containerd's CRI
/// plug-in and `ctr run --runtime-config-path` send these to all runtimes but runc.
///
/// # Errors
/// When they are not what their type says, name no absolute path, or hold a configuration themselves.
pub fn config_path(options: &StartOpts) -> anyhow::Result<Option<String>> {
    /// Of `runtimeoptions.v1.Options`.
    const CONFIG_PATH: u32 = 2;
    const CONFIG_BODY: u32 = 3;
    let Some(any) = find(options, "runtimeoptions.v1.Options") else {
        return Ok(None);
    };
    if !text(any, CONFIG_BODY, "config_body")?.is_empty() {
        bail!(
            "the runtime's options are a configuration, which Hull does not take from there: write it to a file, and \
             have ConfigPath alone, which names that"
        );
    }
    match text(any, CONFIG_PATH, "config_path")? {
        path if path.is_empty() => Ok(None),
        path if Path::new(&path).is_absolute() => Ok(Some(path)),
        path => bail!("ConfigPath of the runtime's options is {path:?}: make it an absolute path"),
    }
}

/// The message of this name.
fn find<'a>(options: &'a StartOpts, name: &str) -> Option<&'a Any> {
    let mut messages = options.extensions.iter();
    // What is before the last slash is where its type is described (`google.protobuf.Any`).
    messages.find(|any| any.type_url.rsplit('/').next() == Some(name))
}

/// A text in a message that the library does not know, by its number; empty if it is not there.
fn text(any: &Any, number: u32, name: &str) -> anyhow::Result<String> {
    let fields = Empty::parse_from_bytes(&any.value).context("decode the runtime's options")?;
    match fields.special_fields.unknown_fields().get(number) {
        Some(UnknownValueRef::LengthDelimited(text)) => String::from_utf8(text.to_vec())
            .with_context(|| format!("decode {name} of the runtime's options")),
        _ => Ok(String::new()),
    }
}

impl Answer {
    /// The bytes for standard output.
    ///
    /// # Errors
    /// When they cannot be encoded.
    pub fn bytes(self, address: &str) -> anyhow::Result<Vec<u8>> {
        let protocol = "ttrpc";
        match self {
            Self::Json(version) => {
                let answer = serde_json::json!(
                    { "version": version, "address": address, "protocol": protocol });
                Ok(answer.to_string().into_bytes())
            }
            Self::Message => {
                let result = BootstrapResult {
                    version: NEWEST.cast_signed(),
                    address: address.to_owned(),
                    protocol: protocol.to_owned(),
                    ..Default::default()
                };
                result.write_to_bytes().context("encode the answer")
            }
        }
    }
}

/// The message of a containerd that sends one.
fn message(input: &[u8], flags: &Flags) -> anyhow::Result<Option<BootstrapParams>> {
    let Ok(mut params) = BootstrapParams::parse_from_bytes(input) else {
        return Ok(None);
    };
    if (&params.instance_id, &params.namespace) == (&flags.id, &flags.namespace) {
        return Ok(Some(params));
    }
    let (id, namespace) = (
        std::mem::take(&mut params.instance_id),
        std::mem::take(&mut params.namespace),
    );
    // An older one's options are an `Any`, whose two fields look like these two, alone.
    if params == BootstrapParams::default() {
        return Ok(None);
    }
    bail!(
        "this shim is for {}/{}, and containerd wants {namespace}/{id}",
        flags.namespace,
        flags.id
    );
}

/// What an older containerd says with flags, environment and runtime options.
fn older(input: &[u8], flags: &Flags, ttrpc_address: Option<String>) -> StartOpts {
    let options = Any::parse_from_bytes(input).ok();
    StartOpts {
        id: flags.id.clone(),
        publish_binary: flags.publish_binary.clone(),
        address: flags.address.clone(),
        ttrpc_address: ttrpc_address.unwrap_or_default(),
        namespace: flags.namespace.clone(),
        debug: flags.debug,
        extensions: options
            .filter(|options| !options.type_url.is_empty())
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// The version to announce; a containerd that does not say what it understands is an old one.
fn version(max: Option<&str>) -> u32 {
    match max.and_then(|max| max.parse::<u32>().ok()) {
        Some(NEWEST..) => NEWEST,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim::bootstrap::Extension;

    use super::*;

    fn flags() -> Flags {
        Flags {
            id: "tide".into(),
            namespace: "sea".into(),
            ..Default::default()
        }
    }

    fn variable(name: &str) -> Option<String> {
        (name == "TTRPC_ADDRESS").then(|| "unix:///events".to_owned())
    }

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn an_older_containerd_sends_options_and_gets_json() {
        let runc = Options {
            shim_cgroup: "/shims".into(),
            ..Default::default()
        };
        let runc = any("containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
        // Field 9, length-delimited, of six bytes.
        let linux = any(
            "containerd.linux.runc.CreateOptions",
            b"\x4a\x06/shims".to_vec(),
        );
        let nothing = any("containerd.linux.runc.CreateOptions", Vec::new());
        for (input, cgroup) in [
            (runc.write_to_bytes().unwrap(), Some("/shims".to_owned())),
            (linux.write_to_bytes().unwrap(), Some("/shims".to_owned())),
            (nothing.write_to_bytes().unwrap(), None),
            (Vec::new(), None),
        ] {
            let (start, answer) = read(&input, &flags(), variable).unwrap();
            assert_eq!(shim_cgroup(&start).unwrap(), cgroup);
            assert_eq!(start.ttrpc_address, "unix:///events");
            assert_eq!(answer, Answer::Json(2));
            let json = answer.bytes("unix:///here").unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(json["version"], 2);
            assert_eq!(json["address"], "unix:///here");
        }
    }

    /// `runtimeoptions.v1.Options` of these fields, each under 128 bytes.
    fn runtime_options(fields: &[(u8, &str)]) -> Any {
        let mut value = Vec::new();
        for (number, text) in fields {
            value.extend([(number << 3) | 2, u8::try_from(text.len()).unwrap()]);
            value.extend(text.bytes());
        }
        any("runtimeoptions.v1.Options", value)
    }

    #[test]
    fn the_runtimes_options_name_the_configuration() {
        let path = "/etc/hull/large.toml";
        for (fields, expected) in [
            (&[][..], None),
            (&[(1, "io.hull"), (2, "")], None),
            (&[(1, "io.hull"), (2, path)], Some(path)),
        ] {
            let options = runtime_options(fields);
            // As containerd 1.7 and 2.2 do, and as 2.3 does.
            let older = options.write_to_bytes().unwrap();
            let newer = BootstrapParams {
                instance_id: "tide".into(),
                namespace: "sea".into(),
                containerd_ttrpc_address: "unix:///newer".into(),
                extensions: vec![Extension {
                    value: Some(options).into(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            for input in [older, newer.write_to_bytes().unwrap()] {
                let (start, _) = read(&input, &flags(), variable).unwrap();
                assert_eq!(config_path(&start).unwrap().as_deref(), expected);
                assert_eq!(shim_cgroup(&start).unwrap(), None);
            }
        }
    }

    #[test]
    fn a_configuration_that_cannot_be_found_or_is_none_is_refused() {
        for (fields, words) in [
            (&[(2, "etc/hull.toml")][..], "absolute"),
            (&[(3, "vcpus = 1")], "ConfigPath"),
            (&[(2, "/hull.toml"), (3, "vcpus = 1")], "ConfigPath"),
        ] {
            let options = StartOpts {
                extensions: vec![runtime_options(fields)],
                ..Default::default()
            };
            let error = config_path(&options).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_newer_containerd_sends_and_gets_a_message() {
        let params = BootstrapParams {
            instance_id: "tide".into(),
            namespace: "sea".into(),
            containerd_ttrpc_address: "unix:///newer".into(),
            ..Default::default()
        };
        let input = params.write_to_bytes().unwrap();
        let (start, answer) = read(&input, &flags(), |_| None).unwrap();
        assert_eq!(start.ttrpc_address, "unix:///newer");
        let result = BootstrapResult::parse_from_bytes(&answer.bytes("unix:///here").unwrap());
        let result = result.unwrap();
        assert_eq!(
            (result.version, result.address.as_str()),
            (3, "unix:///here")
        );
    }

    #[test]
    fn a_message_for_another_shim_and_one_without_an_address_are_refused() {
        let other = BootstrapParams {
            instance_id: "ebb".into(),
            namespace: "sea".into(),
            containerd_ttrpc_address: "unix:///newer".into(),
            ..Default::default()
        };
        let error = read(&other.write_to_bytes().unwrap(), &flags(), variable).unwrap_err();
        assert!(error.to_string().contains("sea/ebb"), "{error}");
        let error = read(&[], &flags(), |_| None).unwrap_err();
        assert!(error.to_string().contains("TTRPC_ADDRESS"), "{error}");
    }

    #[test]
    fn the_newest_version_that_containerd_understands_is_announced() {
        for (max, expected) in [
            (None, 2),
            (Some("2"), 2),
            (Some("3"), 3),
            (Some("4"), 3),
            (Some("x"), 2),
        ] {
            assert_eq!(version(max), expected, "{max:?}");
        }
    }
}
