//! `hull`: looks after Hull on a host.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use hull_shim::check::check;
use hull_shim::command_line::{Args, Command};
use hull_shim::config::Config;
use hull_shim::oci;

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
