//! Reads a bundle's configuration, and the objects of requests that are parts of one.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use log::warn;
use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use serde::Deserialize;
use serde_json::Value;

use super::drop_labels;
use super::mounts::is_bind;

/// Larger configurations are not read: containerd's are a few KiB.
const MAX_CONFIG: u64 = 16 << 20;

/// Why a bundle is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("{} exceeds {MAX_CONFIG} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// It is no OCI runtime configuration.
    #[error("{} is no OCI runtime configuration: {reason}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong and where, on one line.
        reason: String,
    },
}

/// Reads `config.json` of the bundle.
///
/// # Errors
/// When it is missing, too large or no configuration.
pub fn load(bundle: &Path) -> Result<Spec, BundleError> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(MAX_CONFIG + 1).read_to_end(&mut text));
    if let Err(source) = read {
        return Err(BundleError::Read { path, source });
    }
    if text.len() as u64 > MAX_CONFIG {
        return Err(BundleError::TooLarge { path });
    }
    let corrupt = |reason| BundleError::Corrupt {
        path: path.clone(),
        reason,
    };
    let mut json: Value = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    if let Some(process) = json.get_mut("process") {
        forget_unknown_capabilities(process);
        spell_scheduler_flags(process);
    }
    let mut spec: Spec = serde_json::from_value(json).map_err(|e| corrupt(e.to_string()))?;
    let mounts = spec.mounts_mut().iter_mut().flatten();
    for mount in mounts.filter(|mount| is_bind(mount)) {
        // A path relative to the bundle, unless it is absolute.
        let source = mount.source().as_ref().map(|source| bundle.join(source));
        mount.set_source(source);
    }
    match &spec {
        spec if spec.process().is_none() => Err(corrupt("it has no process".into())),
        spec if spec.root().is_none() => Err(corrupt("it has no root".into())),
        _ => Ok(spec),
    }
}

/// Spells the scheduler's flags as the library does that reads them, which has two of them wrong.
fn spell_scheduler_flags(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags");
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// Drops the capabilities that no kernel of ours has. They are no errors: an engine lists what its
/// own kernel knows (OCI runtime-spec 1.2, config.md "Linux Process").
fn forget_unknown_capabilities(process: &mut Value) {
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for names in sets
        .into_iter()
        .flat_map(serde_json::Map::values_mut)
        .filter_map(Value::as_array_mut)
    {
        names.retain(|name| {
            let known = Capability::deserialize(name).is_ok();
            if !known {
                warn!("process.capabilities: the guest has no {name}");
            }
            known
        });
    }
}

/// The root file system on the host: what containerd mounted in the bundle, or, when it mounted
/// nothing, what the configuration names.
#[must_use]
pub fn host_root(spec: &Spec, bundle: &Path, mounted: bool) -> PathBuf {
    match spec.root() {
        Some(root) if !mounted => bundle.join(root.path()),
        _ => bundle.join("rootfs"),
    }
}

/// A JSON object of a request that is none.
#[derive(Debug, thiserror::Error)]
#[error("the request holds no OCI {what} object")]
pub struct Malformed {
    what: &'static str,
    #[source]
    source: serde_json::Error,
}

/// Translates the `process` object of an added process; whether it has a terminal is the request's
/// to say, as with runc's shim.
///
/// # Errors
/// When it is none.
pub fn translate_process(json: &[u8], terminal: bool) -> Result<Vec<u8>, Malformed> {
    let malformed = |source| Malformed {
        what: "process",
        source,
    };
    let mut process: Value = serde_json::from_slice(json).map_err(malformed)?;
    forget_unknown_capabilities(&mut process);
    spell_scheduler_flags(&mut process);
    let mut process: Process = serde_json::from_value(process).map_err(malformed)?;
    drop_labels(&mut process);
    process.set_terminal(Some(terminal));
    serde_json::to_vec(&process).map_err(malformed)
}

/// Reads a `linux.resources` object.
///
/// # Errors
/// When it is none.
pub fn read_resources(json: &[u8]) -> Result<LinuxResources, Malformed> {
    serde_json::from_slice(json).map_err(|source| Malformed {
        what: "linux.resources",
        source,
    })
}
