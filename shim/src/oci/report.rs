//! Errors, told as runc tells them: on standard error, and in the file that `--log` names.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::args::LogFormat;

/// The time now (RFC 3339).
pub(super) fn now() -> String {
    // Fails for years of more than four digits alone.
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// Tells of an error. A log that cannot be written is no reason not to tell the user.
pub(super) fn error(log: Option<&Path>, format: LogFormat, text: &str) {
    let entry = entry(format, "error", &now(), text);
    let Some(log) = log else {
        eprintln!("{entry}");
        return;
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|mut file| writeln!(file, "{entry}"));
    eprintln!("{text}");
    if let Err(e) = written {
        eprintln!("write {}: {e}", log.display());
    }
}

/// Tells of what does not stop a command: on standard error alone, as what `--log` names is read for the reason of a
/// failure.
pub(super) fn warning(text: &str) {
    eprintln!("{}", entry(LogFormat::Text, "warning", &now(), text));
}

fn entry(format: LogFormat, level: &str, time: &str, text: &str) -> String {
    match format {
        LogFormat::Json => json!({ "level": level, "msg": text, "time": time }).to_string(),
        LogFormat::Text => format!("time={time:?} level={level} msg={}", json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_whatever_the_error_says() {
        let text = "no \"tide\"\nat all";
        let json = entry(LogFormat::Json, "error", "2026-01-02T03:04:05Z", text);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&read["level"], &read["msg"]),
            (&json!("error"), &json!(text))
        );
        let line = entry(LogFormat::Text, "error", "2026-01-02T03:04:05Z", text);
        let expected = r#"time="2026-01-02T03:04:05Z" level=error msg="no \"tide\"\nat all""#;
        assert_eq!(line, expected);
    }

    #[test]
    fn entries_are_appended() {
        let log = tempfile::NamedTempFile::new().unwrap();
        for text in ["high", "low"] {
            error(Some(log.path()), LogFormat::Json, text);
        }
        let lines = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(lines.lines().count(), 2);
    }
}
