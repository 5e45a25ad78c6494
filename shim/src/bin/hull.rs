//! `hull`: looks after Hull on a host.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hull_shim::check::check;
use hull_shim::config::Config;

/// Containers in virtual machines of their own.
///
/// Containers are run by containerd, Docker, nerdctl or Kubernetes, whose runtime Hull is
/// (io.containerd.hull.v2); this command looks after Hull itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell whether this host has what Hull needs
    ///
    /// Prints a line for each thing looked at, and what to do about what is missing. Exits with 1
    /// if something is.
    Check,
    /// Print Hull's version
    Version,
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Check => run_check(),
        Command::Version => {
            println!("hull {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn run_check() -> ExitCode {
    let config = match Config::load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("hull: {:#}", anyhow::Error::from(error));
            return ExitCode::FAILURE;
        }
    };
    let mut status = ExitCode::SUCCESS;
    for finding in check(&config) {
        match finding.result {
            Ok(found) => println!("ok       {:<10} {found}", finding.name),
            Err(wrong) => {
                println!("MISSING  {:<10} {wrong}", finding.name);
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
