//! Extended attributes: xattr(7).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::symlink;

use rustix::fs::{
    XattrFlags, getxattr, getxattr_query, listxattr, lsetxattr, removexattr, setxattr,
};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};
use crate::user::as_user;

pub(crate) const CASES: &[Case] = &[
    Case::new("user", "xattr(7)", || round_trip("user.hull")),
    Case::new("trusted", "xattr(7)", || round_trip("trusted.hull")),
    Case::new("security", "xattr(7)", || round_trip("security.hull")),
    Case::new("file_capabilities", "capabilities(7)", file_capabilities),
    Case::new("list_names_all", "listxattr(2)", list_names_all),
    Case::new(
        "trusted_is_hidden_from_users",
        "xattr(7)",
        trusted_is_hidden_from_users,
    ),
    Case::new("size_query", "getxattr(2)", size_query),
    Case::new("small_buffer", "getxattr(2) ERANGE", small_buffer),
    Case::new("missing", "getxattr(2) ENODATA", missing),
    Case::new("create_and_replace", "setxattr(2)", create_and_replace),
    Case::new("empty_value", "setxattr(2)", empty_value),
    Case::new("binary_value", "setxattr(2)", binary_value),
    Case::new("too_large", "setxattr(2) E2BIG", too_large),
    Case::new("long_name", "setxattr(2) ERANGE", long_name),
    Case::new(
        "unknown_namespace",
        "setxattr(2) ENOTSUP",
        unknown_namespace,
    ),
    Case::new(
        "user_on_a_symbolic_link",
        "xattr(7)",
        user_on_a_symbolic_link,
    ),
    Case::new("user_of_another_user", "xattr(7)", user_of_another_user),
    Case::new("on_directories", "xattr(7)", on_directories),
];

/// The value of attribute `name`.
pub(crate) fn value(path: &str, name: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; 4096];
    let length = getxattr(path, name, &mut bytes[..])?;
    bytes.truncate(length);
    Ok(bytes)
}

fn names(path: &str) -> Outcome<BTreeSet<String>> {
    let mut bytes = vec![0; 4096];
    let length = listxattr(path, &mut bytes[..])?;
    let names = bytes[..length].split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}

fn set(path: &str, name: &str, value: &[u8]) -> Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}

fn round_trip(name: &str) -> Outcome {
    File::create("f")?;
    set("f", name, b"tide")?;
    same("the value", value("f", name)?, b"tide".to_vec())?;
    set("f", name, b"ebb")?;
    same("the value", value("f", name)?, b"ebb".to_vec())?;
    removexattr("f", name)?;
    refused(Errno::NODATA, value("f", name))
}

/// CAP_NET_BIND_SERVICE, permitted and effective: what `setcap cap_net_bind_service+ep` writes.
pub(crate) const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn file_capabilities() -> Outcome {
    File::create("f")?;
    set("f", "security.capability", CAPABILITY)?;
    same(
        "the value",
        value("f", "security.capability")?,
        CAPABILITY.to_vec(),
    )
}

fn list_names_all() -> Outcome {
    File::create("f")?;
    set("f", "user.a", b"1")?;
    set("f", "user.b", b"2")?;
    removexattr("f", "user.a")?;
    set("f", "user.c", b"3")?;
    let expected = ["user.b", "user.c"].map(str::to_owned);
    same("the list", names("f")?, BTreeSet::from(expected))
}

fn trusted_is_hidden_from_users() -> Outcome {
    File::create("f")?;
    set("f", "trusted.hull", b"1")?;
    as_user(&[], || {
        same("the list", names("f")?, BTreeSet::new())?;
        refused(Errno::NODATA, value("f", "trusted.hull"))
    })
}

fn size_query() -> Outcome {
    File::create("f")?;
    set("f", "user.hull", b"tide")?;
    same("the size", getxattr_query("f", "user.hull")?, 4)
}

fn small_buffer() -> Outcome {
    File::create("f")?;
    set("f", "user.hull", b"tide")?;
    refused(Errno::RANGE, getxattr("f", "user.hull", &mut [0; 3][..]))?;
    refused(Errno::RANGE, listxattr("f", &mut [0; 3][..]))
}

fn missing() -> Outcome {
    File::create("f")?;
    refused(Errno::NODATA, value("f", "user.hull"))?;
    refused(Errno::NODATA, removexattr("f", "user.hull"))
}

fn create_and_replace() -> Outcome {
    File::create("f")?;
    let replace = setxattr("f", "user.hull", b"1", XattrFlags::REPLACE);
    refused(Errno::NODATA, replace)?;
    setxattr("f", "user.hull", b"1", XattrFlags::CREATE)?;
    let create = setxattr("f", "user.hull", b"2", XattrFlags::CREATE);
    refused(Errno::EXIST, create)?;
    setxattr("f", "user.hull", b"3", XattrFlags::REPLACE)?;
    same("the value", value("f", "user.hull")?, b"3".to_vec())
}

fn empty_value() -> Outcome {
    File::create("f")?;
    set("f", "user.hull", b"")?;
    same("the value", value("f", "user.hull")?, Vec::new())
}

fn binary_value() -> Outcome {
    File::create("f")?;
    let bytes: Vec<u8> = (0..=255).chain(0..=255).collect();
    set("f", "user.hull", &bytes)?;
    same("the value", value("f", "user.hull")?, bytes)
}

fn too_large() -> Outcome {
    File::create("f")?;
    refused(Errno::TOOBIG, set("f", "user.hull", &vec![0; 65_537]))
}

fn long_name() -> Outcome {
    File::create("f")?;
    let name = format!("user.{}", "x".repeat(250));
    set("f", &name, b"1")?;
    same("the value", value("f", &name)?, b"1".to_vec())?;
    refused(Errno::RANGE, set("f", &format!("{name}x"), b"1"))
}

fn unknown_namespace() -> Outcome {
    File::create("f")?;
    refused(Errno::OPNOTSUPP, set("f", "hull.hull", b"1"))
}

fn user_on_a_symbolic_link() -> Outcome {
    symlink("f", "l")?;
    let result = lsetxattr("l", "user.hull", b"1", XattrFlags::empty());
    refused(Errno::PERM, result)
}

fn user_of_another_user() -> Outcome {
    File::create("f")?;
    as_user(&[], || {
        // The mode is 0666: the user may.
        set("f", "user.hull", b"1")?;
        refused(Errno::PERM, set("f", "security.hull", b"1"))
    })?;
    std::fs::set_permissions("f", std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    as_user(&[], || {
        refused(Errno::ACCESS, set("f", "user.hull", b"2"))?;
        same("the value", value("f", "user.hull")?, b"1".to_vec())
    })
}

fn on_directories() -> Outcome {
    set(".", "user.hull", b"1")?;
    holds(names(".")?.contains("user.hull"), "the list lacks the name")
}
