//! A bare virtual machine: `hull-vmm`, Hull's kernel, busybox and a script.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, unshare};
use vmm_control::{
    Channel, Counters, Disk, Event, ExitReason, MacAddress, Nic, RateLimit, Request, VmConfig,
};

use crate::{Initramfs, Process, Tap, wait};

/// User and group of its process: within no sandbox's range.
const USER: &str = "2100000000";

/// A machine to be booted.
#[derive(Debug)]
pub struct Machine {
    program: String,
    script: String,
    cmdline: String,
    vcpus: u8,
    memory_mib: u32,
    balloon: bool,
    hotplug_mib: u32,
    pmems: Vec<OwnedFd>,
    disks: Vec<Disk<OwnedFd>>,
    nics: Vec<Nic<OwnedFd>>,
}

/// A machine that was booted. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    control: Option<Channel>,
    process: Child,
    console: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Machine {
    /// One vCPU, 256 MiB, and a shell script to run as init; then the guest reboots.
    #[must_use]
    pub fn with_script(script: &str) -> Self {
        Self {
            program: "/usr/lib/hull/hull-vmm".to_owned(),
            script: script.to_owned(),
            cmdline: "console=ttyS0 quiet reboot=k panic=-1 rdinit=/init".to_owned(),
            vcpus: 1,
            memory_mib: 256,
            balloon: false,
            hotplug_mib: 0,
            pmems: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
        }
    }

    /// Runs it with another program, which has to become `hull-vmm`.
    #[must_use]
    pub fn program(mut self, path: &str) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    /// Appends to the kernel's command line; later words win.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// Sets the number of vCPUs and the memory.
    #[must_use]
    pub fn size(mut self, vcpus: u8, memory_mib: u32) -> Self {
        (self.vcpus, self.memory_mib) = (vcpus, memory_mib);
        self
    }

    /// Adds a balloon, and memory that may be plugged, which the guest's kernel is told to use at once.
    #[must_use]
    pub fn elastic(mut self, hotplug_mib: u32) -> Self {
        (self.balloon, self.hotplug_mib) = (true, hotplug_mib);
        self.cmdline("memhp_default_state=online")
    }

    /// Adds a file that the guest reads in place.
    ///
    /// # Panics
    /// When its descriptor cannot be duplicated.
    #[must_use]
    pub fn pmem(mut self, file: &File) -> Self {
        let file = file.try_clone().expect("duplicate a file's descriptor");
        self.pmems.push(file.into());
        self
    }

    /// Adds a disk.
    ///
    /// # Panics
    /// When its descriptor cannot be duplicated.
    #[must_use]
    pub fn disk(mut self, file: &File, read_only: bool, serial: &str) -> Self {
        let file = file
            .try_clone()
            .expect("duplicate a disk's descriptor")
            .into();
        self.disks.push(Disk {
            file,
            read_only,
            serial: serial.to_owned(),
            rate_limit: RateLimit::default(),
        });
        self
    }

    /// Adds a network interface, with a pair of queues for each queue of the tap.
    #[must_use]
    pub fn nic(mut self, tap: Tap, mac: MacAddress) -> Self {
        self.nics.push(Nic {
            pairs: tap.queues(),
            taps: tap.into(),
            vhost: None,
            mac,
            mtu: Some(1500),
            receive_limit: RateLimit::default(),
            transmit_limit: RateLimit::default(),
        });
        self
    }

    /// Has the host's kernel move the frames of the interfaces so far (vhost-net).
    ///
    /// # Panics
    /// When it has no `/dev/vhost-net`.
    #[must_use]
    pub fn vhost_net(mut self) -> Self {
        for nic in &mut self.nics {
            let file = File::options()
                .read(true)
                .write(true)
                .open("/dev/vhost-net");
            let file = file.expect("open /dev/vhost-net; is the module vhost_net loaded?");
            nic.vhost = Some(file.into());
        }
        self
    }

    /// Boots it, in its jail.
    ///
    /// # Panics
    /// When `hull-vmm` cannot be started.
    #[must_use]
    pub fn boot(self) -> Vm {
        let open = |path: &str, write: bool| -> OwnedFd {
            let file = File::options().read(true).write(write).open(path);
            file.unwrap_or_else(|e| panic!("open {path}: {e}")).into()
        };
        let (console, console_end) = std::io::pipe().expect("make a pipe");
        let config = VmConfig {
            kvm: open("/dev/kvm", true),
            kernel: open("/usr/lib/hull/vmlinux", false),
            initrd: Some(Initramfs::with_script(&self.script).into_file().into()),
            cmdline: self.cmdline,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            serial: Some(console_end.into()),
            pmems: self.pmems,
            disks: self.disks,
            nics: self.nics,
            shares: Vec::new(),
            balloon: self.balloon,
            spare_disks: 0,
            hotplug_mib: self.hotplug_mib,
            entropy_limit: RateLimit::default(),
        };
        Vm::boot(&self.program, config, Some(console))
    }
}

/// Starts a command as the first process of a pid namespace, into which only children can be born.
fn spawn_as_first(command: &mut Command) -> Child {
    thread::scope(|scope| {
        let spawned = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWPID).expect("make a pid namespace");
            command.spawn().expect("start hull-vmm")
        });
        spawned.join().expect("the thread starts it")
    })
}

impl Vm {
    /// Boots what `config` describes on `program`, in its jail; reads the other end of its serial
    /// line, if there is one.
    ///
    /// # Panics
    /// When `hull-vmm` cannot be started.
    #[must_use]
    pub fn boot(program: &str, config: VmConfig<OwnedFd>, console: Option<PipeReader>) -> Self {
        let (control, theirs) = Channel::pair().expect("make a socket pair");
        let mut command = Command::new(program);
        command
            .args(["--control-fd", "3", "--uid", USER])
            .stdin(Stdio::null())
            .fd_mappings(vec![FdMapping {
                parent_fd: theirs.into(),
                child_fd: 3,
            }])
            .expect("one mapping does not collide");
        let process = spawn_as_first(&mut command);
        // Ours of its end of the socket.
        drop(command);
        let (wire, fds) = config.detach();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control
            .send(&Request::Boot(Box::new(wire)), &borrowed)
            .expect("send the boot request");
        drop(fds);

        let text = Arc::new(Mutex::new(String::new()));
        let reader = console.map(|mut console| {
            let seen = Arc::clone(&text);
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = console.read(&mut bytes) {
                    let new = String::from_utf8_lossy(&bytes[..length]);
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push_str(&new);
                }
            })
        });
        Self {
            control: Some(control),
            process,
            console: text,
            reader,
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the guest has printed so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.console
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until the guest has printed `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        wait::until(&format!("the guest prints {text:?}"), || {
            self.console().contains(text).then_some(())
        });
    }

    /// Waits for its counters.
    ///
    /// # Panics
    /// When the VMM says something else.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.request(&Request::Counters);
        loop {
            match self.event() {
                Some(Event::Started) => {}
                Some(Event::Counters(counters)) => return counters,
                other => panic!("asked for counters: {other:?}"),
            }
        }
    }

    /// Bytes of the host's memory that are the guest's.
    #[must_use]
    pub fn resident(&self) -> u64 {
        Process::of(&self.pid().to_string()).guest_memory()
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When the VMM is gone.
    pub fn request(&self, request: &Request) {
        self.channel().send(request, &[]).expect("hull-vmm listens");
    }

    /// Connects a network interface to another tap.
    ///
    /// # Panics
    /// When the VMM is gone.
    pub fn plug(&self, nic: usize, tap: Tap) {
        let tap = Vec::<OwnedFd>::from(tap);
        let tap: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
        let sent = self.channel().send(&Request::Plug { nic }, &tap);
        sent.expect("hull-vmm listens");
    }

    /// Receives the next event; `None` once the VMM has closed the socket.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        self.channel().receive().ok().map(|(event, _)| event)
    }

    /// Waits until the machine is over; returns why, its counters, and all it printed.
    ///
    /// # Panics
    /// When the VMM ends without saying why.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> (ExitReason, Counters, String) {
        let end = loop {
            match self.event() {
                Some(Event::Exited { reason, counters }) => break (reason, counters),
                Some(_) => {}
                None => panic!(
                    "hull-vmm closed its socket without a word:\n{}",
                    self.console()
                ),
            }
        };
        let status = self.process.wait().expect("wait for hull-vmm");
        let failed = matches!(end.0, ExitReason::Failed(_));
        assert_eq!(status.success(), !failed, "{status} after {:?}", end.0);
        self.reader.take().map(JoinHandle::join);
        (end.0, end.1, self.console())
    }

    /// Closes the control socket, as a shim does that dies, and waits for the process to end.
    pub fn abandon(mut self) {
        self.control = None;
        wait::until("hull-vmm ends after its shim", || {
            self.process.try_wait().ok().flatten()
        });
    }

    fn channel(&self) -> &Channel {
        self.control
            .as_ref()
            .expect("the socket is open until the machine is abandoned")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the guest printed:\n{}", self.console());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
