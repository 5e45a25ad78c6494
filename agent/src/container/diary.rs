//! libcontainer's own account of a failure.
//!
//! Its errors lose their causes where they cross from one of its processes to the next ("failed to
//! prepare rootfs"); what it logs on the way does not. So in an operation its error events go to a
//! pipe, a line each, the cause first.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct Diary {
    pipe: File,
}

/// Writes the calling process's error events to `pipe` from now on, and those of its children.
pub fn keep(pipe: OwnedFd) {
    let pipe = File::from(pipe);
    // Fails only if it is called twice in one process.
    let _ = tracing::subscriber::set_global_default(Diary { pipe });
}

impl Subscriber for Diary {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        // Nobody may read any more, and that is fine.
        let _ = (&self.pipe).write_all(line.finish().as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `message (name=value, …)`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn finish(self) -> String {
        let line = match (self.message, self.fields) {
            (message, fields) if fields.is_empty() => message,
            (message, fields) => format!("{message} ({fields})"),
        };
        line.replace('\n', " ") + "\n"
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match (field.name(), self.fields.is_empty()) {
            ("message", _) => write!(self.message, "{value:?}"),
            (name, true) => write!(self.fields, "{name}={value:?}"),
            (name, false) => write!(self.fields, ", {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn errors_are_kept_and_nothing_else() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        keep(writer);

        tracing::debug!("mounting");
        tracing::error!(path = ?"/x", "failed to mount: {}", "no such\ndevice");

        let mut kept = [0; 256];
        let count = File::from(reader).read(&mut kept).unwrap();
        let kept = String::from_utf8_lossy(&kept[..count]);
        assert_eq!(kept, "failed to mount: no such device (path=\"/x\")\n");
    }
}
