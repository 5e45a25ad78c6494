//! renameat2(2)'s flags, and what pjdfstest does not ask of rename.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::check::{Case, Outcome, holds, refused, same};

pub(crate) const CASES: &[Case] = &[
    Case::new("no_replace", "renameat2(2) RENAME_NOREPLACE", no_replace),
    Case::new("exchange", "renameat2(2) RENAME_EXCHANGE", exchange),
    Case::new(
        "exchange_with_a_directory",
        "renameat2(2) RENAME_EXCHANGE",
        exchange_kinds,
    ),
    Case::new(
        "exchange_with_nothing",
        "renameat2(2) ENOENT",
        exchange_with_nothing,
    ),
    Case::new("onto_its_own_link", "rename", onto_its_own_link),
    Case::new("keeps_the_inode", "rename", keeps_the_inode),
    Case::new("directory_with_content", "rename", directory_with_content),
    Case::new(
        "directory_onto_an_empty_one",
        "rename",
        directory_onto_an_empty_one,
    ),
    Case::new(
        "directory_into_itself",
        "rename EINVAL",
        directory_into_itself,
    ),
    Case::new("always_one_of_both", "rename", always_one_of_both),
];

fn rename(from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, from, CWD, to, flags)
}

fn no_replace() -> Outcome {
    std::fs::write("a", "a")?;
    std::fs::write("b", "b")?;
    refused(Errno::EXIST, rename("a", "b", RenameFlags::NOREPLACE))?;
    same("b", std::fs::read_to_string("b")?.as_str(), "b")?;
    rename("a", "c", RenameFlags::NOREPLACE)?;
    same("c", std::fs::read_to_string("c")?.as_str(), "a")
}

fn exchange() -> Outcome {
    std::fs::write("a", "a")?;
    std::fs::write("b", "b")?;
    rename("a", "b", RenameFlags::EXCHANGE)?;
    same("a", std::fs::read_to_string("a")?.as_str(), "b")?;
    same("b", std::fs::read_to_string("b")?.as_str(), "a")
}

fn exchange_kinds() -> Outcome {
    std::fs::write("a", "a")?;
    std::fs::create_dir("b")?;
    File::create("b/f")?;
    rename("a", "b", RenameFlags::EXCHANGE)?;
    holds(std::fs::exists("a/f")?, "the directory has lost its file")?;
    same("b", std::fs::read_to_string("b")?.as_str(), "a")
}

fn exchange_with_nothing() -> Outcome {
    std::fs::write("a", "a")?;
    refused(Errno::NOENT, rename("a", "b", RenameFlags::EXCHANGE))
}

/// "If the old and new names are links to the same file, rename shall do nothing."
fn onto_its_own_link() -> Outcome {
    std::fs::write("a", "a")?;
    std::fs::hard_link("a", "b")?;
    std::fs::rename("a", "b")?;
    holds(
        std::fs::exists("a")? && std::fs::exists("b")?,
        "a name is gone",
    )
}

fn keeps_the_inode() -> Outcome {
    std::fs::write("a", "a")?;
    let before = std::fs::metadata("a")?.ino();
    std::fs::rename("a", "b")?;
    same("the inode", std::fs::metadata("b")?.ino(), before)?;
    holds(!std::fs::exists("a")?, "the old name is still there")
}

fn directory_with_content() -> Outcome {
    std::fs::create_dir_all("a/b/c")?;
    std::fs::write("a/b/c/f", "tide")?;
    std::fs::rename("a/b", "d")?;
    same(
        "the file",
        std::fs::read_to_string("d/c/f")?.as_str(),
        "tide",
    )?;
    same("what is left", std::fs::read_dir("a")?.count(), 0)
}

fn directory_onto_an_empty_one() -> Outcome {
    std::fs::create_dir_all("a/b")?;
    std::fs::create_dir("d")?;
    std::fs::rename("a", "d")?;
    std::fs::create_dir("a")?;
    holds(std::fs::exists("d/b")?, "the content is gone")?;
    refused(Errno::NOTEMPTY, rename("a", "d", RenameFlags::empty()))
}

fn directory_into_itself() -> Outcome {
    std::fs::create_dir_all("a/b")?;
    refused(Errno::INVAL, rename("a", "a/b/c", RenameFlags::empty()))
}

/// Whoever opens a name while it is replaced gets the old file or the new one.
fn always_one_of_both() -> Outcome {
    std::fs::write("f", "old")?;
    let replacing = std::thread::spawn(|| -> std::io::Result<()> {
        for _ in 0..300 {
            std::fs::write("new", "new")?;
            std::fs::rename("new", "f")?;
        }
        Ok(())
    });
    while !replacing.is_finished() {
        let content = std::fs::read_to_string("f")?;
        holds(
            content == "old" || content == "new",
            "neither the old nor the new file",
        )?;
    }
    Ok(replacing.join().expect("a panic aborts")?)
}
