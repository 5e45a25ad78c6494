//! What containerd is told of Hull before there is a container.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use hull_tests::{Host, RUNTIME};
use serde_json::Value;

/// The length-delimited fields of a protobuf message (encoding.md): all that a `RuntimeInfo` has.
fn fields(mut message: &[u8]) -> BTreeMap<u64, &[u8]> {
    let mut fields = BTreeMap::new();
    while !message.is_empty() {
        let tag = number(&mut message);
        assert_eq!(tag & 7, 2, "field {} is length-delimited", tag >> 3);
        let length = usize::try_from(number(&mut message)).expect("it fits");
        let (value, rest) = message.split_at(length);
        fields.insert(tag >> 3, value);
        message = rest;
    }
    fields
}

/// Takes a varint off the message.
fn number(message: &mut &[u8]) -> u64 {
    let length = 1 + message
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .expect("it ends");
    let (bytes, rest) = message.split_at(length);
    *message = rest;
    let places = bytes.iter().zip((0..).step_by(7));
    places.fold(0, |sum, (byte, place)| {
        sum | (u64::from(byte & 0x7f) << place)
    })
}

#[test]
fn the_shim_tells_its_name_version_and_features() {
    let _host = Host::take();
    // containerd gives an empty input where it has no options.
    let mut shim = Command::new("containerd-shim-hull-v2");
    let told = shim.arg("-info").stdin(Stdio::null()).output().unwrap();
    assert!(told.status.success(), "{told:#?}");

    let info = fields(&told.stdout);
    assert_eq!(info[&1], RUNTIME.as_bytes());
    let version = fields(info[&2]);
    assert_eq!(version[&1], env!("CARGO_PKG_VERSION").as_bytes());
    assert!(!info.contains_key(&3), "no options were given");
    let features = fields(info[&4]);
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
    assert_eq!(features[&1], type_url.as_bytes());
    let features: Value = serde_json::from_slice(features[&2]).unwrap();
    assert_eq!(
        features["linux"]["mountExtensions"]["idmap"]["enabled"],
        true
    );
}
