//! Writes the man pages of `hull` and its commands into a folder.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{CommandFactory, Parser};
use hull_shim::command_line::Args;

/// Write hull's man pages.
#[derive(Debug, Parser)]
struct Man {
    /// The folder, which is there
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Man { folder } = Man::parse();
    clap_mangen::generate_to(Args::command(), folder)?;
    Ok(())
}
