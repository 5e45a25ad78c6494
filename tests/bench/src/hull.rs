//! A machine of `hull-vmm`, jailed as the shim's are.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use hull_tests::Vm;
use vmm_control::{Disk, Event, MacAddress, Nic, RateLimit, Share, VmConfig};

use crate::machine::{MEMORY_MIB, Machine, open};

pub(crate) struct Hull(Vm);

pub(crate) fn boot(machine: Machine<'_>) -> anyhow::Result<Hull> {
    let file = |path: &str, write| open(Path::new(path), write).map(OwnedFd::from);
    let (console, serial) = std::io::pipe().context("make a pipe")?;
    let disk = |path: &Path| -> anyhow::Result<_> {
        Ok(Disk {
            file: open(path, true)?.into(),
            read_only: false,
            serial: String::new(),
            rate_limit: RateLimit::default(),
        })
    };
    let nic = |tap: hull_tests::Tap| Nic {
        pairs: tap.queues(),
        taps: tap.into(),
        vhost: None,
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: None,
        receive_limit: RateLimit::default(),
        transmit_limit: RateLimit::default(),
    };
    let share = |socket: std::path::PathBuf| -> anyhow::Result<_> {
        Ok(Share {
            daemon: UnixStream::connect(socket)?.into(),
            tag: "hull".to_owned(),
        })
    };
    let initrd = machine.initrd.map(|path| open(path, false)).transpose()?;
    let config = VmConfig {
        kvm: file("/dev/kvm", true)?,
        kernel: file("/usr/lib/hull/vmlinux", false)?,
        initrd: initrd.map(OwnedFd::from),
        cmdline: machine.cmdline,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        serial: machine.console.then(|| serial.into()),
        disks: machine.disk.map(disk).transpose()?.into_iter().collect(),
        nics: machine.tap.map(nic).into_iter().collect(),
        shares: machine.share.map(share).transpose()?.into_iter().collect(),
        balloon: false,
        pmems: (machine
            .root
            .map(|path| open(path, false).map(OwnedFd::from)))
        .transpose()?
        .into_iter()
        .collect(),
        spare_disks: 0,
        hotplug_mib: 0,
        entropy_limit: RateLimit::default(),
    };
    let console = machine.console.then_some(console);
    Ok(Hull(Vm::boot("/usr/lib/hull/hull-vmm", config, console)))
}

impl Hull {
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) fn wait_for_agent(&self) -> anyhow::Result<()> {
        loop {
            match self.0.event() {
                Some(Event::Dialled { port, .. }) if port == agent_protocol::RPC_PORT => {
                    return Ok(());
                }
                Some(Event::Exited { reason, .. }) => bail!("the machine is over: {reason:?}"),
                Some(_) => {}
                None => bail!("hull-vmm closed its socket"),
            }
        }
    }

    pub(crate) fn finish(self) -> String {
        self.0.finish().2
    }
}
