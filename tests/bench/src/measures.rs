//! What is measured of each, and what is aimed at.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use hull_tests::{Initramfs, Tap, wait};
use tempfile::TempDir;

use crate::machine::{Machine, Running, Vmm};
use crate::process;
use crate::profile::Trace;
use crate::server;

/// One kind of run, and what it tells.
pub(crate) struct Measure {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it tells.
    pub figures: &'static [Figure],
    /// Boots one machine and measures it.
    pub run: fn(&Setting, Vmm) -> anyhow::Result<Figures>,
}

/// What a run has told, by [`Figure::key`].
pub(crate) type Figures = Vec<(String, f64)>;

/// One number of each run.
pub(crate) struct Figure {
    /// What it is called in a run's result.
    pub key: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What is aimed at.
    pub goal: Goal,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Hull's is at most this many hundredths of QEMU's.
    AtMost(u32),
    /// Hull's is at least this many hundredths of QEMU's.
    AtLeast(u32),
    /// Hull's own is at most this.
    Within(u32),
    /// Nothing: told for its own sake.
    None,
}

const fn figure(key: &'static str, what: &'static str, unit: &'static str, goal: Goal) -> Figure {
    Figure {
        key,
        what,
        unit,
        goal,
    }
}

/// What the program in the guest tells of a disk and of a folder; only the latter has files.
const STORAGE: &[Figure] = &[
    figure("read", "read in a row", "MB/s", Goal::AtLeast(100)),
    figure(
        "write",
        "write in a row, with a flush",
        "MB/s",
        Goal::AtLeast(100),
    ),
    figure("page-read", "read a page", "µs", Goal::AtMost(100)),
    figure(
        "page-write",
        "write a page, and flush",
        "µs",
        Goal::AtMost(100),
    ),
    figure(
        "files",
        "make, look at and remove a file",
        "µs",
        Goal::AtMost(100),
    ),
];

/// All of them.
pub(crate) const MEASURES: &[Measure] = &[
    Measure {
        name: "start",
        figures: &[
            figure(
                "ready",
                "from exec to the agent's first word",
                "ms",
                Goal::AtMost(40),
            ),
            figure(
                "user-exits",
                "exits to the VMM until then",
                "",
                Goal::Within(1000),
            ),
            figure(
                "exits",
                "all exits until then, page faults and halts included",
                "",
                Goal::None,
            ),
            figure(
                "memory",
                "memory of the VMM but the guest's",
                "KiB",
                Goal::Within(3072),
            ),
            figure("threads", "threads", "", Goal::None),
        ],
        run: start,
    },
    // Of the start; apart, because tracing takes time itself.
    Measure {
        name: "profile",
        figures: &[
            figure("before", "until the guest first runs", "ms", Goal::None),
            figure("guest", "in the guest", "ms", Goal::None),
            figure(
                "interrupts",
                "interrupts' registers, in KVM and the VMM",
                "ms",
                Goal::None,
            ),
            figure(
                "faults",
                "its memory's page faults, in KVM",
                "ms",
                Goal::None,
            ),
            figure("halted", "while the guest waits", "ms", Goal::None),
            figure("vmm", "in the VMM", "ms", Goal::None),
            figure("rest", "other exits, in KVM", "ms", Goal::None),
        ],
        run: profile,
    },
    Measure {
        name: "disk",
        figures: STORAGE,
        run: disk,
    },
    Measure {
        name: "interrupts",
        figures: &[figure(
            "registers",
            "what the registers of a disk's interrupt take",
            "µs",
            Goal::None,
        )],
        run: interrupts,
    },
    Measure {
        name: "network",
        figures: &[
            figure("send", "to the host", "MB/s", Goal::AtLeast(100)),
            figure("receive", "from the host", "MB/s", Goal::AtLeast(100)),
            figure(
                "round-trip",
                "a byte there and back",
                "µs",
                Goal::AtMost(100),
            ),
        ],
        run: network,
    },
    Measure {
        name: "folder",
        figures: STORAGE,
        run: folder,
    },
];

/// What all runs use.
pub(crate) struct Setting {
    qemu: PathBuf,
    /// Where everything is.
    folder: TempDir,
}

/// The guest's image.
const IMAGE: &str = "/usr/lib/hull/guest.erofs";

/// Size of the disk that is measured.
const DISK: u64 = 128 << 20;

/// Kernel words of a guest that runs a script.
const CMDLINE: &str = "quiet reboot=t panic=-1 tsc=reliable no_timer_check cryptomgr.notests";

impl Setting {
    /// Makes images and starts what the host has to serve.
    pub(crate) fn prepare(qemu: &Path, guest: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder")?;
        let program = fs::read(guest).context("read the program for guests")?;
        for (name, script) in [
            ("disk", "guest disk /dev/vda"),
            (
                "network",
                "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; guest network 192.0.2.1",
            ),
            (
                "folder",
                "mount -t virtiofs hull /mnt && guest folder /mnt; umount /mnt",
            ),
        ] {
            let archive = Initramfs::with_script(script).program("bin/guest", &program);
            let mut file = archive.into_file();
            std::io::Seek::rewind(&mut file)?;
            let mut named = File::create(folder.path().join(name))?;
            std::io::copy(&mut file, &mut named).context("write an initial RAM file system")?;
            named.flush()?;
        }
        server::serve()?;
        Ok(Self {
            qemu: qemu.to_owned(),
            folder,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A guest that runs the script in `initrd`.
    fn guest<'a>(&'a self, initrd: &'a Path) -> Machine<'a> {
        Machine {
            qemu: &self.qemu,
            cmdline: format!("console=ttyS0 rdinit=/init {CMDLINE}"),
            initrd: Some(initrd),
            root: None,
            disk: None,
            tap: None,
            share: None,
            console: true,
        }
    }
}

/// A machine that starts the agent, as the shim's do.
fn agents(setting: &Setting) -> Machine<'_> {
    Machine {
        qemu: &setting.qemu,
        cmdline: hull_shim::sandbox::CMDLINE.to_owned(),
        initrd: None,
        root: Some(Path::new(IMAGE)),
        disk: None,
        tap: None,
        share: None,
        console: false,
    }
}

fn profile(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let trace = Trace::begin()?;
    let mut running = agents(setting).boot(vmm)?;
    running.wait_for_agent()?;
    Ok(trace.end()?.places)
}

fn start(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let begin = Instant::now();
    let mut running = agents(setting).boot(vmm)?;
    running.wait_for_agent()?;
    let ready = begin.elapsed().as_secs_f64() * 1e3;

    let pid = running.pid();
    let counter = |name| process::counter(pid, name);
    let threads = process::threads(pid)?;
    eprintln!("bench: {vmm:?} has threads {threads:?}");
    #[expect(clippy::cast_precision_loss, reason = "threads are few")]
    let figures = [
        ("ready", ready),
        ("user-exits", counter("io_exits")? + counter("mmio_exits")?),
        ("exits", counter("exits")?),
        ("memory", process::private_kib(pid, Path::new(IMAGE))?),
        ("threads", threads.len() as f64),
    ];
    Ok(figures.map(|(key, value)| (key.to_owned(), value)).into())
}

fn disk(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let (initrd, image) = (setting.path("disk"), setting.path("image"));
    File::create(&image)?.set_len(DISK)?;
    let mut machine = setting.guest(&initrd);
    machine.disk = Some(&image);
    told(&machine.boot(vmm)?.finish()?)
}

/// With MSI-X there would be no such registers.
fn interrupts(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let trace = Trace::begin()?;
    disk(setting, vmm)?;
    let profile = trace.end()?;
    let mut places = profile.places.iter();
    let interrupts = places.find(|(key, _)| key == "interrupts");
    let (_, ms) = interrupts.context("interrupts are a place")?;
    let each = ms * 1e3 / f64::from(profile.acknowledged);
    Ok(vec![("registers".to_owned(), each)])
}

fn network(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let initrd = setting.path("network");
    let mut machine = setting.guest(&initrd);
    machine.tap = Some(Tap::up("bench0", "192.0.2.1/24"));
    told(&machine.boot(vmm)?.finish()?)
}

fn folder(setting: &Setting, vmm: Vmm) -> anyhow::Result<Figures> {
    let initrd = setting.path("folder");
    let shared = tempfile::tempdir_in(setting.folder.path())?;
    let socket = setting.path("virtiofsd.sock");
    let _ = fs::remove_file(&socket);
    let mut daemon = Command::new("/usr/libexec/virtiofsd")
        .arg(format!("--socket-path={}", socket.display()))
        .arg(format!("--shared-dir={}", shared.path().display()))
        .args(["--cache=auto", "--log-level=error", "--sandbox=chroot"])
        .stdin(Stdio::null())
        .spawn()
        .context("start virtiofsd")?;
    wait::until("virtiofsd listens", || socket.exists().then_some(()));
    let mut machine = setting.guest(&initrd);
    machine.share = Some(socket);
    let said = machine.boot(vmm).and_then(Running::finish);
    let _ = daemon.kill();
    let _ = daemon.wait();
    told(&said?)
}

/// The figures among what a guest has said.
fn told(said: &str) -> anyhow::Result<Figures> {
    let mut figures = Vec::new();
    for line in said.lines() {
        if let Some(["@", key, value]) = line.split_whitespace().collect::<Vec<_>>().get(..3) {
            figures.push(((*key).to_owned(), value.parse()?));
        }
    }
    ensure!(!figures.is_empty(), "the guest measured nothing: {said}");
    Ok(figures)
}
