//! What is typed for `hull`, and what `hull --help` and the man pages say.

use clap::{Parser, Subcommand};

use crate::oci::{self, OciArgs};

/// Containers in virtual machines of their own.
///
/// Containers are run by containerd, Docker, nerdctl or Kubernetes, whose runtime Hull is
/// (io.containerd.hull.v2); this command looks after Hull itself. Builds, Podman and buildah call
/// `hull oci` in place of runc.
#[derive(Debug, Parser)]
#[command(name = "hull", version, after_long_help = FILES)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
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

const FILES: &str = "\
Files:
  /etc/hull/config.toml  the configuration: every key with its default
  /usr/lib/hull          hull-vmm, the guest's kernel and image
  /usr/share/doc/hull    documentation, where Hull is a package
  /run/hull              what runs now

Environment:
  HULL_CONFIG            another configuration; containers have it from
                         containerd's environment";
