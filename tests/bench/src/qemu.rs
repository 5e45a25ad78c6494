//! A machine of QEMU's: microvm, with nothing that Hull's has not.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket,
};

use crate::machine::{MEMORY_MIB, Machine};

/// Number of the tap's descriptor in QEMU.
const TAP_FD: i32 = 3;

/// The guest's vsock address; nobody else has one in the test host.
const CID: u32 = 3;

pub(crate) struct Qemu {
    child: Child,
    /// Where its agent dials.
    agent: OwnedFd,
}

/// How the kernel is told of a root that is mapped.
const ROOT: &str = "root=/dev/pmem0 rootflags=dax";

pub(crate) fn boot(machine: Machine<'_>) -> anyhow::Result<Qemu> {
    let agent = listen_for_agent().context("listen on vsock")?;
    let mut command = Command::new(machine.qemu);
    let serial = if machine.console { "on" } else { "off" };
    command
        // As little of a PC as it can be: no firmware but what jumps to the kernel.
        .arg("-machine")
        .arg(format!(
            "microvm,acpi=off,pit=off,pic=off,rtc=off,usb=off,pcie=off,isa-serial={serial},\
             x-option-roms=off,auto-kernel-cmdline=on,memory-backend=ram"
        ))
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .arg("-object")
        .arg(format!(
            "memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"
        ))
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-bios", "qboot.rom"])
        .args(["-kernel", "/usr/lib/hull/vmlinux"])
        .args(["-append", &machine.cmdline.replace(ROOT, "root=/dev/vda")])
        .arg("-device")
        .arg(format!("vhost-vsock-device,guest-cid={CID}"))
        .args(["-device", "virtio-rng-device"]);
    if machine.console {
        command.args(["-chardev", "stdio,id=console", "-serial", "chardev:console"]);
    }
    if let Some(initrd) = machine.initrd {
        command.arg("-initrd").arg(initrd);
    }
    let root = machine.root.map(|path| (path, "readonly=on"));
    let disk = machine.disk.map(|path| (path, "discard=unmap"));
    if let Some((path, mode)) = root.or(disk) {
        let words = format!("if=none,id=disk,format=raw,file={},{mode}", path.display());
        command.args(["-drive", &words, "-device", "virtio-blk-device,drive=disk"]);
    }
    if let Some(socket) = &machine.share {
        command
            .arg("-chardev")
            .arg(format!("socket,id=share,path={}", socket.display()))
            .args(["-device", "vhost-user-fs-device,chardev=share,tag=hull"]);
    }
    if let Some(tap) = machine.tap {
        command
            .arg("-netdev")
            .arg(format!("tap,id=net,fd={TAP_FD},vhost=off"))
            .args([
                "-device",
                "virtio-net-device,netdev=net,mac=02:00:00:00:00:01",
            ])
            .fd_mappings(
                (TAP_FD..)
                    .zip(Vec::from(tap))
                    .map(|(child_fd, parent_fd)| FdMapping {
                        parent_fd,
                        child_fd,
                    })
                    .collect(),
            )?;
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start QEMU")?;
    Ok(Qemu { child, agent })
}

fn listen_for_agent() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, agent_protocol::RPC_PORT);
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(1)?)?;
    Ok(socket)
}

impl Qemu {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn wait_for_agent(&self) -> anyhow::Result<()> {
        let dialled = accept(self.agent.as_raw_fd()).context("accept the agent")?;
        nix::unistd::close(dialled)?;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> anyhow::Result<String> {
        let mut said = String::new();
        let output = self.child.stdout.take().context("it has an output")?;
        for line in BufReader::new(output).lines() {
            let line = line.context("read QEMU's console")?;
            said += &line;
            said.push('\n');
            if line.contains("THE-END") {
                break;
            }
        }
        Ok(said)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
