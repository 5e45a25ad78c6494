//! The agent's log: lines to the shim, or to the kernel's log until it listens.

use std::sync::OnceLock;

use agent_protocol::LOG_PORT;
use log::{LevelFilter, Log, Metadata, Record};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::boot;
use crate::host::Host;

/// Lines that may wait for the shim; more are dropped.
const BACKLOG: usize = 256;

static LOGGER: Logger = Logger {
    host: OnceLock::new(),
};

struct Logger {
    host: OnceLock<mpsc::Sender<String>>,
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("{} {}: {}", record.level(), record.target(), record.args());
        match self.host.get() {
            // A full or closed log must not hold up the containers.
            Some(host) => drop(host.try_send(line)),
            None => boot::complain(&line),
        }
    }

    fn flush(&self) {}
}

/// Starts to log, to the kernel.
pub fn start() {
    // Fails only for a second logger, and then the first one serves.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Sends the log to the host from now on. A host that does not listen is left alone.
pub async fn send_to(host: Host) {
    let mut connection = match host.connect(LOG_PORT).await {
        Ok(connection) => connection,
        Err(error) => return log::info!("the host takes no log: {error}"),
    };
    let (sender, mut lines) = mpsc::channel::<String>(BACKLOG);
    if LOGGER.host.set(sender).is_err() {
        return;
    }
    tokio::spawn(async move {
        while let Some(mut line) = lines.recv().await {
            line.push('\n');
            if connection.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    });
}
