//! Boots a kernel on `hull-vmm`, with its console on standard output.
//!
//! ```text
//! boot --kernel vmlinux --initrd initrd.cpio --cmdline 'console=ttyS0 reboot=k panic=-1'
//! boot --kernel vmlinux --disk root.img --disk-ro data.img --cpus 2 --memory 512 \
//!      --cmdline 'console=ttyS0 reboot=k panic=-1 root=/dev/vda rw'
//! ```
//!
//! It does what containerd-shim-hull-v2 does, and no more than that: opens every file, passes the
//! descriptors over the control socket, and waits for the end. Ctrl-C ends the machine, because it
//! closes the socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use clap::{ArgAction, Parser};
use rustix::io::FdFlags;
use vmm_control::{Channel, Counters, Disk, Event, ExitReason, RateLimit, Request, VmConfig};

/// Boots a kernel on hull-vmm, with its console on standard output.
#[derive(Debug, Parser)]
struct Args {
    /// The virtual machine monitor
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/hull/hull-vmm")]
    vmm: PathBuf,
    /// Uncompressed kernel: an ELF with a PVH note on x86_64, an Image on aarch64
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/hull/vmlinux")]
    kernel: PathBuf,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line; the VMM adds the devices
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "console=ttyS0 reboot=k panic=-1"
    )]
    cmdline: String,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u8,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u32,
    /// Raw disk that the guest may write; given again, the next one
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    disk: Vec<PathBuf>,
    /// Raw disk that the guest may only read; these follow those it may write
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    disk_ro: Vec<PathBuf>,
    /// No serial console
    #[arg(long)]
    no_serial: bool,
    /// Tell the machine's counters on standard error when it has ended
    #[arg(long)]
    counters: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let config = config(&args)?;
    let (mut vmm, control) = start(&args.vmm)?;

    let (wire, fds) = config.detach();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    control.send(&Request::Boot(Box::new(wire)), &borrowed)?;
    drop(fds);

    let ended = wait(&control);
    drop(control);
    vmm.wait().context("wait for the VMM")?;
    let (reason, counters) = ended?;
    if args.counters {
        eprintln!("boot: {counters:#?}");
    }
    eprintln!("boot: {reason}");
    Ok(match reason {
        ExitReason::InitEnded(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        ExitReason::Stopped | ExitReason::Reset | ExitReason::PoweredOff => ExitCode::SUCCESS,
        ExitReason::Panicked(_) | ExitReason::TripleFault | ExitReason::Failed(_) => {
            ExitCode::FAILURE
        }
    })
}

/// Opens everything the machine is made of.
fn config(args: &Args) -> anyhow::Result<VmConfig<OwnedFd>> {
    let serial = match args.no_serial {
        true => None,
        false => Some(io::stdout().as_fd().try_clone_to_owned()?),
    };
    let disk = |path: &PathBuf, read_only: bool| -> anyhow::Result<_> {
        let file = open(path, !read_only)?;
        let serial = String::new();
        Ok(Disk {
            file,
            read_only,
            serial,
            rate_limit: RateLimit::default(),
        })
    };
    let writable = args.disk.iter().map(|path| disk(path, false));
    let read_only = args.disk_ro.iter().map(|path| disk(path, true));
    Ok(VmConfig {
        kvm: open(Path::new("/dev/kvm"), true)?,
        kernel: open(&args.kernel, false)?,
        initrd: args
            .initrd
            .as_deref()
            .map(|path| open(path, false))
            .transpose()?,
        cmdline: args.cmdline.clone(),
        vcpus: args.cpus,
        memory_mib: args.memory,
        serial,
        disks: writable.chain(read_only).collect::<Result<_, _>>()?,
        nics: Vec::new(),
        shares: Vec::new(),
        balloon: false,
        pmems: vec![],
        spare_disks: 0,
        hotplug_mib: 0,
        entropy_limit: RateLimit::default(),
    })
}

fn open(path: &Path, write: bool) -> anyhow::Result<OwnedFd> {
    let file = File::options().read(true).write(write).open(path);
    Ok(file
        .with_context(|| format!("open {}", path.display()))?
        .into())
}

/// Starts the VMM with its end of a control socket.
fn start(vmm: &Path) -> anyhow::Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair().context("make the control socket")?;
    // It keeps its number across exec: nothing else is started here that could inherit it.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("pass the control socket on")?;
    let child = Command::new(vmm)
        .arg("--control-fd")
        .arg(theirs.as_raw_fd().to_string())
        // One's own kernel, run by hand. What is not trusted is the shim's to run.
        .arg("--unjailed")
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", vmm.display()))?;
    Ok((child, ours))
}

/// Waits until the machine is over.
fn wait(control: &Channel) -> anyhow::Result<(ExitReason, Counters)> {
    loop {
        let (event, _) = control.receive::<Event>().context("wait for the machine")?;
        match event {
            Event::Exited { reason, counters } => return Ok((reason, counters)),
            // Nobody here wants what a guest dials: its socket is closed, and the guest told.
            Event::Dialled { .. } | Event::Started | Event::Counters(_) => {}
        }
    }
}
