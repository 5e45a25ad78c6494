//! What Hull is and can do, as containerd asks before there is any container: `containerd-shim-hull-v2 -info`
//! (runtime-v2.md). containerd 2 refuses a mount with an idmap of a runtime that does not say it has those.

use std::io::Write;

use anyhow::Context;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::bootstrap;
use crate::oci;
use crate::server::RUNTIME;

/// What containerd calls the type of `features.Features` of the OCI runtime-spec, which is JSON in an `Any`.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// `-info`: reads the runtime's options from standard input, and answers on standard output.
///
/// # Errors
/// When containerd cannot be heard or told.
pub fn tell() -> anyhow::Result<()> {
    let options = bootstrap::standard_input()?;
    let answer = answer(&options)?;
    let told = std::io::stdout().write_all(&answer);
    told.context("tell containerd what Hull can do")
}

/// A `RuntimeInfo`; `options` is an `Any`, or nothing.
fn answer(options: &[u8]) -> anyhow::Result<Vec<u8>> {
    let options = Any::parse_from_bytes(options).context("decode the runtime's options")?;
    let features = Any {
        type_url: FEATURES.to_owned(),
        value: oci::features().to_string().into_bytes(),
        ..Default::default()
    };
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        options: Some(options)
            .filter(|options| !options.type_url.is_empty())
            .into(),
        features: MessageField::some(features),
        ..Default::default()
    };
    info.write_to_bytes().context("encode what Hull can do")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_is_told_name_version_features_and_its_own_options() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x02/c".to_vec(),
            ..Default::default()
        };

        for options in [None, Some(options)] {
            let asked = options.as_ref().map(Message::write_to_bytes);
            let answer = answer(&asked.transpose().unwrap().unwrap_or_default()).unwrap();

            let info = RuntimeInfo::parse_from_bytes(&answer).unwrap();
            assert_eq!(info.name, "io.containerd.hull.v2");
            assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
            assert_eq!(info.options.into_option(), options);
            assert_eq!(
                info.features.type_url,
                "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
            );
            let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
            assert_eq!(features, oci::features());
        }
    }

    #[test]
    fn idmapped_mounts_are_among_what_containerd_may_ask_for() {
        let idmap = &oci::features()["linux"]["mountExtensions"]["idmap"]["enabled"];
        assert_eq!(idmap, true);
    }

    #[test]
    fn options_that_are_no_message_are_refused() {
        let error = answer(b"\xff").unwrap_err();
        assert!(error.to_string().contains("options"), "{error}");
    }
}
