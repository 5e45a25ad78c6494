//! What both are asked for, and a machine of either.

use std::fs::File;
use std::path::{Path, PathBuf};

use hull_tests::Tap;

use crate::{hull, qemu};

/// Guest memory in MiB.
pub(crate) const MEMORY_MIB: u32 = 256;

/// Who makes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// `hull-vmm`, in its jail.
    Hull,
    /// QEMU's microvm machine.
    Qemu,
}

/// A machine with one vCPU.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The program that starts QEMU.
    pub qemu: &'a Path,
    /// For the kernel, beside what the VMM adds for its devices.
    pub cmdline: String,
    /// Initial RAM file system.
    pub initrd: Option<&'a Path>,
    /// The guest's root, as good as either has it: Hull maps it, QEMU's microvm machine has no slots for
    /// that and makes it a disk.
    pub root: Option<&'a Path>,
    /// A raw image.
    pub disk: Option<&'a Path>,
    /// A tap that is up.
    pub tap: Option<Tap>,
    /// A socket where virtiofsd listens for one connection.
    pub share: Option<PathBuf>,
    /// Whether there is a serial console.
    pub console: bool,
}

/// A machine that runs; it ends when this is dropped.
pub(crate) enum Running {
    /// One of Hull's.
    Hull(hull::Hull),
    /// One of QEMU's.
    Qemu(qemu::Qemu),
}

impl Machine<'_> {
    /// Boots it.
    pub(crate) fn boot(self, vmm: Vmm) -> anyhow::Result<Running> {
        Ok(match vmm {
            Vmm::Hull => Running::Hull(hull::boot(self)?),
            Vmm::Qemu => Running::Qemu(qemu::boot(self)?),
        })
    }
}

impl Running {
    /// The VMM's process.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Hull(hull) => hull.pid(),
            Self::Qemu(qemu) => qemu.pid(),
        }
    }

    /// Waits until the guest's agent has dialled the host.
    pub(crate) fn wait_for_agent(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Hull(hull) => hull.wait_for_agent(),
            Self::Qemu(qemu) => qemu.wait_for_agent(),
        }
    }

    /// Waits for the end of its script; returns all that was printed.
    pub(crate) fn finish(self) -> anyhow::Result<String> {
        match self {
            Self::Hull(hull) => Ok(hull.finish()),
            Self::Qemu(qemu) => qemu.finish(),
        }
    }
}

/// Opens a file of a machine's.
pub(crate) fn open(path: &Path, write: bool) -> anyhow::Result<File> {
    use anyhow::Context;

    let file = File::options().read(true).write(write).open(path);
    file.with_context(|| format!("open {}", path.display()))
}
