//! `hull`: looks after Hull on a host.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hull_shim::check::check;
use hull_shim::config::Config;
use hull_shim::oci::{self, OciArgs};

/// Containers in virtual machines of their own.
///
/// Containers are run by containerd, Docker, nerdctl or Kubernetes, whose runtime Hull is
/// (io.containerd.hull.v2); this command looks after Hull itself. Builds, Podman and buildah call
/// `hull oci` in place of runc.
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
    /// Run containers as runc does, for programs that call runc; hull-oci is the same in one word
    ///
    /// Commands, options, files and exit statuses are those of runc(8); each container is in a virtual
    /// machine of its own. Call it as root.
    #[command(display_name = oci::NAME, version = oci::VERSION)]
    Oci(Box<OciArgs>),
    /// Print Hull's version
    Version,
}

fn main() -> ExitCode {
    match Args::parse_from(words()).command {
        Command::Check => run_check(),
        Command::Oci(args) => oci::run(&args),
        Command::Version => {
            println!("hull {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

/// What was typed; a program that is called hull-oci is `hull oci`.
fn words() -> Vec<OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    let name = words.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == oci::NAME) {
        words.splice(..1, ["hull".into(), "oci".into()]);
    }
    words
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
