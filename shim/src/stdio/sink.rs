//! Where an output goes: a named pipe, a file, or a logger.
//!
//! Both ends of a pipe are held, so that a reader who comes late or leaves does no harm; it is closed
//! when the guest's stream has ended and every byte is in it, which is what the reader waits for.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use super::StdioError;

/// What the bytes are written to.
pub(super) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// What a path or URI names.
pub(super) enum Target {
    /// Nothing: the output is not wanted.
    Nobody,
    /// A named pipe.
    Pipe(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A program.
    Logger(LoggerCommand),
}

/// A logger (containerd's `binary://PROGRAM?KEY=VALUE`).
pub(super) struct LoggerCommand {
    pub(super) program: PathBuf,
    /// Keys and values in turn, as containerd gives them.
    pub(super) args: Vec<String>,
}

/// Reads a path or URI.
pub(super) fn target(text: &str) -> Result<Target, StdioError> {
    if text.is_empty() {
        return Ok(Target::Nobody);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Target::Pipe(local(text)?.to_owned()));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = percent_decode_str(path).decode_utf8_lossy();
    let path = local(&path).map_err(|_| StdioError::Scheme(text.into()))?;
    match scheme {
        "fifo" => Ok(Target::Pipe(path.to_owned())),
        "file" => Ok(Target::File(path.to_owned())),
        "binary" => {
            let pairs = form_urlencoded::parse(query.as_bytes());
            let args = pairs.flat_map(|(key, value)| [key.into_owned(), value.into_owned()]);
            Ok(Target::Logger(LoggerCommand {
                program: path.to_owned(),
                args: args.collect(),
            }))
        }
        _ => Err(StdioError::Scheme(text.into())),
    }
}

/// Opens a pipe or file. Standard error has no logger of its own: standard output's gets both.
pub(super) fn open(target: Target) -> Result<Option<Sink>, StdioError> {
    let error = |path: PathBuf| move |source| StdioError::Open { path, source };
    match target {
        Target::Nobody => Ok(None),
        Target::Pipe(path) => {
            let opened = pipe::OpenOptions::new().read_write(true).open_sender(&path);
            Ok(Some(Box::new(opened.map_err(error(path))?)))
        }
        Target::File(path) => {
            // As containerd's own shim does.
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            let opened =
                made.and_then(|()| OpenOptions::new().append(true).create(true).open(&path));
            let file = tokio::fs::File::from_std(opened.map_err(error(path))?);
            Ok(Some(Box::new(file)))
        }
        Target::Logger(LoggerCommand { program, .. }) => {
            let uri = format!("binary://{}", program.display());
            Err(StdioError::Scheme(uri))
        }
    }
}

/// A path that does not depend on a working directory.
pub(super) fn local(path: &str) -> Result<&Path, StdioError> {
    if path.starts_with('/') {
        Ok(Path::new(path))
    } else {
        Err(StdioError::Scheme(path.into()))
    }
}
