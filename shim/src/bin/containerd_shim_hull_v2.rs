//! `containerd-shim-hull-v2`: containerd starts it for each container that runs on Hull.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use hull_shim::stand_ins::program;
use hull_shim::{info, server};

fn main() -> ExitCode {
    if let Some(role) = std::env::var_os(program::ROLE) {
        return program::run(&role);
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    serve(&args)
}

#[tokio::main(flavor = "current_thread")]
async fn serve(args: &[OsString]) -> ExitCode {
    let flags = match containerd_shim::parse(args) {
        Ok(flags) if flags.version => {
            println!("{} {}", server::RUNTIME, env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("{}: {error}", server::RUNTIME);
            return ExitCode::FAILURE;
        }
    };
    let done = if flags.info {
        info::tell()
    } else {
        server::run(flags).await
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", server::RUNTIME);
            ExitCode::FAILURE
        }
    }
}
