//! What is measured from inside a guest: its disk, its shared folder, its network.
//!
//! Prints a line `@ NAME VALUE` for each; throughput in MB/s, latencies in microseconds.

mod network;
mod storage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

/// Measures a device of the guest that it runs in.
#[derive(Debug, Parser)]
enum Args {
    /// A block device, whose contents are lost
    Disk {
        /// The device
        device: PathBuf,
    },
    /// A folder of a shared file system
    Folder {
        /// The folder
        folder: PathBuf,
    },
    /// The path to a host that runs `hull-bench`
    Network {
        /// Its address
        host: std::net::IpAddr,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Disk { device } => storage::disk(&device).context("measure the disk"),
        Args::Folder { folder } => storage::folder(&folder).context("measure the folder"),
        Args::Network { host } => network::network(host).context("measure the network"),
    }
}

fn say(name: &str, value: f64) {
    println!("@ {name} {value:.3}");
}

/// Megabytes (10^6) a second.
#[expect(
    clippy::cast_precision_loss,
    reason = "a measurement's size is far below 2^52"
)]
fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
}

/// The median of how long `count` runs of `work` take, in microseconds.
fn latency(count: u64, mut work: impl FnMut(u64) -> std::io::Result<()>) -> std::io::Result<f64> {
    let mut times = Vec::new();
    for number in 0..count {
        let begin = Instant::now();
        work(number)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(micros(times[times.len() / 2]))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
