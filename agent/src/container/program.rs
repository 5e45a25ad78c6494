//! Which file a process's first argument stands for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::unistd::AccessFlags;

/// Why there is nothing to execute. The words are runc's, which tools match.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No directory of `PATH` has it.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// As it was asked for.
        name: String,
    },
    /// A directory of `PATH` that has it is relative, or none: the working directory.
    #[error("exec: {name:?}: cannot run executable found relative to current directory")]
    Relative {
        /// As it was asked for.
        name: String,
    },
    /// There is no such file, or nobody may look.
    #[error("exec: {name:?}: stat {name}: {}", errno_text(.source))]
    Stat {
        /// Its path.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not a file.
    #[error("exec: {name:?}: is a directory")]
    Directory {
        /// Its path.
        name: String,
    },
    /// The user may not execute it.
    #[error("exec: {name:?}: permission denied")]
    Permission {
        /// Its path.
        name: String,
    },
}

/// The program that `name` stands for, by the rules of Go's `exec.LookPath`, as runc's.
///
/// # Errors
/// Why there is none.
pub fn find(name: &str, path: &str) -> Result<String, ProgramError> {
    if name.contains('/') {
        check_program(name)?;
        return Ok(name.to_owned());
    }
    // An empty list has no entry; an empty entry of others is the working directory.
    let directories = path.split(':').filter(|_| !path.is_empty());
    let candidates = directories.map(|directory| match directory {
        "" => format!("./{name}"),
        directory => format!("{directory}/{name}"),
    });
    let mut programs = candidates.filter(|candidate| check_program(candidate).is_ok());
    match programs.next().filter(|_| !name.is_empty()) {
        Some(program) if program.starts_with('/') => Ok(program),
        Some(_) => Err(ProgramError::Relative { name: name.into() }),
        None => Err(ProgramError::NotInPath { name: name.into() }),
    }
}

fn check_program(path: &str) -> Result<(), ProgramError> {
    let name = path.to_owned();
    let stat = match fs::metadata(path) {
        Ok(stat) => stat,
        Err(source) => return Err(ProgramError::Stat { name, source }),
    };
    if stat.is_dir() {
        return Err(ProgramError::Directory { name });
    }
    // Root with CAP_DAC_OVERRIDE still needs one of the three execute bits.
    if stat.mode() & 0o111 == 0 || nix::unistd::eaccess(path, AccessFlags::X_OK).is_err() {
        return Err(ProgramError::Permission { name });
    }
    Ok(())
}

/// The system's words for an error without Rust's "(os error 2)", in Go's lower case.
pub fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with an executable `yes`, a plain `no` and a directory `dir`.
    fn bin() -> tempfile::TempDir {
        let bin = tempfile::tempdir().unwrap();
        fs::write(bin.path().join("yes"), "").unwrap();
        fs::set_permissions(bin.path().join("yes"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(bin.path().join("no"), "").unwrap();
        fs::create_dir(bin.path().join("dir")).unwrap();
        bin
    }

    fn message(found: Result<String, ProgramError>) -> String {
        found.unwrap_err().to_string()
    }

    #[test]
    fn a_bare_name_is_found_in_path() {
        let bin = bin();
        let path = format!("/nonexistent:{}", bin.path().display());

        let found = find("yes", &path).unwrap();

        assert_eq!(found, format!("{}/yes", bin.path().display()));
    }

    #[test]
    fn a_bare_name_that_cannot_be_run_is_not_found() {
        let bin = bin();
        let path = bin.path().to_str().unwrap();

        for name in ["no", "dir", "missing", ""] {
            assert_eq!(
                message(find(name, path)),
                format!("exec: {name:?}: executable file not found in $PATH")
            );
        }
    }

    #[test]
    fn a_bare_name_is_not_run_from_the_working_directory() {
        let bin = bin();
        // No other test has a relative path.
        std::env::set_current_dir(bin.path()).unwrap();

        let [none, others @ ..] =
            ["", ":", "/nonexistent:", "."].map(|path| message(find("yes", path)));

        assert_eq!(none, r#"exec: "yes": executable file not found in $PATH"#);
        let relative = "cannot run executable found relative to current directory";
        assert_eq!(
            others,
            [(); 3].map(|()| format!(r#"exec: "yes": {relative}"#))
        );
    }

    #[test]
    fn a_path_that_cannot_be_run_says_why() {
        let bin = bin();
        let path = |name| format!("{}/{name}", bin.path().display());

        assert_eq!(
            message(find(&path("missing"), "")),
            format!(
                "exec: {0:?}: stat {0}: no such file or directory",
                path("missing")
            )
        );
        assert_eq!(
            message(find(&path("no"), "")),
            format!("exec: {:?}: permission denied", path("no"))
        );
        assert_eq!(
            message(find(&path("dir"), "")),
            format!("exec: {:?}: is a directory", path("dir"))
        );
    }
}
