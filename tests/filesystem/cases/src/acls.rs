//! POSIX access control lists, by the extended attributes that hold them.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{Mode, OFlags, XattrFlags, open, removexattr, setxattr};
use rustix::io::Errno;

use crate::check::{Case, Outcome, refused, same};
use crate::user::{EXTRA, GROUP, USER, as_user};
use crate::xattrs::value;

pub(crate) const CASES: &[Case] = &[
    Case::new("named_user_may_read", "acl(5)", named_user_may_read),
    Case::new("named_group_may_write", "acl(5)", named_group_may_write),
    Case::new("mask_limits_named_users", "acl(5)", mask_limits_named_users),
    Case::new("mask_is_the_group_class", "acl(5)", mask_is_the_group_class),
    Case::new("chmod_changes_the_mask", "acl(5)", chmod_changes_the_mask),
    Case::new(
        "files_inherit_the_default",
        "acl(5)",
        files_inherit_the_default,
    ),
    Case::new(
        "directories_inherit_the_default",
        "acl(5)",
        directories_inherit_the_default,
    ),
    Case::new(
        "default_replaces_the_umask",
        "acl(5)",
        default_replaces_the_umask,
    ),
    Case::new("can_be_removed", "acl(5)", can_be_removed),
    Case::new(
        "others_may_not_change_it",
        "acl(5)",
        others_may_not_change_it,
    ),
    Case::new("malformed_is_refused", "acl(5)", malformed_is_refused),
];

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// A list in the attribute's format: owner, one named user or group, owning group, mask, others.
fn list(named_tag: u16, named: u32, named_rights: u16, mask: u16) -> Vec<u8> {
    const OWNER: u16 = 0x01;
    const GROUP_OWNER: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    const NOBODY: u32 = u32::MAX;
    let mut entries = [
        (OWNER, 6, NOBODY),
        (named_tag, named_rights, named),
        (GROUP_OWNER, 0, NOBODY),
        (MASK, mask, NOBODY),
        (OTHER, 0, NOBODY),
    ];
    // The kernel wants them by tag; a named group comes after the owning one.
    entries.sort_by_key(|(tag, ..)| *tag);
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NAMED_USER: u16 = 0x02;
const NAMED_GROUP: u16 = 0x08;

/// The file `f`, nobody's but root's, with `list`.
fn file_with(list: &[u8]) -> Outcome {
    File::create("f")?;
    std::fs::set_permissions("f", PermissionsExt::from_mode(0o600))?;
    Ok(setxattr("f", ACCESS, list, XattrFlags::empty())?)
}

fn mode(path: &str) -> Outcome<u32> {
    Ok(std::fs::metadata(path)?.mode() & 0o7777)
}

fn named_user_may_read() -> Outcome {
    file_with(&list(NAMED_USER, USER, 4, 4))?;
    as_user(&[], || {
        open("f", OFlags::RDONLY, Mode::empty())?;
        refused(Errno::ACCESS, open("f", OFlags::WRONLY, Mode::empty()))
    })
}

fn named_group_may_write() -> Outcome {
    file_with(&list(NAMED_GROUP, EXTRA, 6, 6))?;
    as_user(&[], || {
        refused(Errno::ACCESS, open("f", OFlags::WRONLY, Mode::empty()))
    })?;
    as_user(&[EXTRA], || {
        open("f", OFlags::RDWR, Mode::empty())?;
        Ok(())
    })
}

fn mask_limits_named_users() -> Outcome {
    file_with(&list(NAMED_USER, USER, 6, 4))?;
    as_user(&[], || {
        refused(Errno::ACCESS, open("f", OFlags::WRONLY, Mode::empty()))
    })
}

fn mask_is_the_group_class() -> Outcome {
    file_with(&list(NAMED_USER, USER, 6, 4))?;
    same("the mode", mode("f")?, 0o640)
}

fn chmod_changes_the_mask() -> Outcome {
    file_with(&list(NAMED_USER, USER, 6, 6))?;
    std::fs::set_permissions("f", PermissionsExt::from_mode(0o600))?;
    same(
        "the list",
        value("f", ACCESS)?,
        list(NAMED_USER, USER, 6, 0),
    )?;
    as_user(&[], || {
        refused(Errno::ACCESS, open("f", OFlags::RDONLY, Mode::empty()))
    })
}

fn files_inherit_the_default() -> Outcome {
    setxattr(
        ".",
        DEFAULT,
        &list(NAMED_USER, USER, 6, 6),
        XattrFlags::empty(),
    )?;
    open("f", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o666))?;
    same(
        "the list",
        value("f", ACCESS)?,
        list(NAMED_USER, USER, 6, 6),
    )?;
    same("the mode", mode("f")?, 0o660)
}

fn directories_inherit_the_default() -> Outcome {
    let inherited = list(NAMED_USER, USER, 7, 7);
    setxattr(".", DEFAULT, &inherited, XattrFlags::empty())?;
    std::fs::create_dir("d")?;
    same("the default", value("d", DEFAULT)?, inherited)
}

fn default_replaces_the_umask() -> Outcome {
    setxattr(
        ".",
        DEFAULT,
        &list(NAMED_USER, USER, 6, 6),
        XattrFlags::empty(),
    )?;
    let before = rustix::process::umask(Mode::from(0o077));
    let created = open("f", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o666));
    rustix::process::umask(before);
    created?;
    same("the mode", mode("f")?, 0o660)
}

fn can_be_removed() -> Outcome {
    file_with(&list(NAMED_USER, USER, 6, 6))?;
    removexattr("f", ACCESS)?;
    refused(Errno::NODATA, value("f", ACCESS))?;
    as_user(&[], || {
        refused(Errno::ACCESS, open("f", OFlags::RDONLY, Mode::empty()))
    })
}

fn others_may_not_change_it() -> Outcome {
    file_with(&list(NAMED_USER, USER, 6, 6))?;
    as_user(&[], || {
        let wider = list(NAMED_USER, USER, 7, 7);
        refused(
            Errno::PERM,
            setxattr("f", ACCESS, &wider, XattrFlags::empty()),
        )
    })
}

fn malformed_is_refused() -> Outcome {
    File::create("f")?;
    let mut list = list(NAMED_USER, GROUP, 6, 6);
    list.truncate(list.len() - 8);
    refused(
        Errno::INVAL,
        setxattr("f", ACCESS, &list, XattrFlags::empty()),
    )
}
