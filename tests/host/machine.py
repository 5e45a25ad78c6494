"""The emulated machine: QEMU with a processor that offers hardware virtualization.

A machine is booted once to "ready", stopped, and kept: its memory as a file, the rest of its state
as QEMU's migration stream. From then on it is restored: the memory file mapped copy-on-write, so
that a run starts in the time it takes to read a few megabytes, and leaves the file as it was.
"""

import base64
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 300
# How long a machine takes to have nothing to do once it is ready.
IDLE_SECONDS = 5


class HostError(Exception):
    """The machine failed, not the command in it."""


@dataclass(frozen=True)
class Shape:
    """What makes one machine differ from another when it boots."""

    arch: str
    cpus: int
    memory_mib: int
    docker: bool
    accelerator: str  # "kvm" or "tcg"
    gic: int = 3  # aarch64's interrupt controller, by its version

    def arguments(self, root):
        machine, processor, console = BOARDS[self.arch, self.accelerator]
        machine = machine.format(gic=self.gic)
        accelerator = {"tcg": "tcg,thread=multi,tb-size=1024", "kvm": "kvm"}[self.accelerator]
        words = f"console={console} panic=-1 quiet mitigations=off"
        processors = self.cpus
        if (self.arch, self.accelerator) == ("x86_64", "tcg"):
            # The first one is left idle: docs/test-host.md, "What goes wrong".
            words += " isolcpus=0"
            processors += 1
        words += " docker" if self.docker else ""
        return [
            f"{root}/qemu/run",
            *("-machine", f"{machine},memory-backend=ram", "-accel", accelerator, "-cpu", processor),
            *("-smp", str(processors), "-m", str(self.memory_mib)),
            *("-display", "none", "-no-reboot", "-nodefaults", "-no-user-config"),
            *("-kernel", f"{root}/vmlinuz", "-initrd", f"{root}/initrd", "-append", words),
            *("-drive", f"if=none,id=root,file={root}/root.erofs,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            # Where the shared folders are plugged in; nothing sits there while a state is saved.
            *("-device", "pcie-root-port,id=slot0,chassis=1"),
            *("-device", "pcie-root-port,id=slot1,chassis=2"),
            *("-device", "virtio-serial-pci,max_ports=4"),
        ]


# The board, processor and console by architecture and accelerator; each processor has virtualization of its own.
BOARDS = {
    ("x86_64", "tcg"): ("q35", "EPYC-Rome,+svm,+npt", "ttyS0"),
    ("x86_64", "kvm"): ("q35", "host,migratable=on", "ttyS0"),
    # Pointers signed by a cheap function: the architecture's own would take most of the emulation's time.
    ("aarch64", "tcg"): ("virt,virtualization=on,gic-version={gic}", "max,pauth-impdef=on", "ttyAMA0"),
    ("aarch64", "kvm"): ("virt,virtualization=on,gic-version={gic}", "host", "ttyAMA0"),
}


class Machine:
    """A running machine, with its three ports and QEMU's monitor."""

    def __init__(self, shape, root, memory, log, restore_from=None, folders=()):
        sockets = {name: socket.socketpair() for name in ("qmp", "control", "stdout", "stderr")}
        arguments = shape.arguments(root)
        shared = "off" if restore_from else "on"
        arguments += [
            "-object",
            f"memory-backend-file,id=ram,size={shape.memory_mib}M,mem-path={memory},share={shared}",
        ]
        for name, (_, theirs) in sockets.items():
            arguments += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
        arguments += ["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]
        arguments += ["-chardev", f"file,id=console,path={log},append=on"]
        for number, name in enumerate(("control", "stdout", "stderr"), start=1):
            arguments += ["-device", f"virtserialport,chardev={name},name={name},nr={number}"]
        for tag, folder, access in folders:
            readonly = "on" if access == "ro" else "off"
            arguments += [
                "-fsdev",
                f"local,id={tag},path={folder},security_model=none,readonly={readonly},multidevs=remap",
            ]
        if restore_from:
            arguments += ["-incoming", "defer"]
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno() for _, theirs in sockets.values()],
                # A Ctrl-C is ours to handle: QEMU would end without our knowing.
                start_new_session=True,
            )
        for _, theirs in sockets.values():
            theirs.close()
        self.ports = {name: ours for name, (ours, _) in sockets.items()}
        self.monitor = self.ports["qmp"].makefile("rw")
        self._greet()
        if restore_from:
            self._restore(restore_from, folders)

    def _greet(self):
        if not self.monitor.readline():
            raise HostError("QEMU did not start")
        self.qmp("qmp_capabilities")

    def qmp(self, command, **arguments):
        """Executes one monitor command; events in between are of no interest."""
        self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.monitor.flush()
        while True:
            line = self.monitor.readline()
            if not line:
                raise HostError(f"QEMU ended at {command}")
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise HostError(f"{command}: {answer['error']['desc']}")

    def _migrate(self, command, uri):
        capability = {"capability": "x-ignore-shared", "state": True}
        self.qmp("migrate-set-capabilities", capabilities=[capability])
        self.qmp(command, uri=uri)
        while True:
            status = self.qmp("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise HostError(f"{command} {status}")
            time.sleep(0.02)

    def save(self, path):
        """Stops the machine and writes its state beside its memory."""
        self.qmp("stop")
        self._migrate("migrate", f"exec:cat > {path}")

    def _restore(self, path, folders):
        self._migrate("migrate-incoming", f"exec:cat {path}")
        for slot, (tag, _, _) in enumerate(folders):
            self.qmp(
                "device_add", driver="virtio-9p-pci", fsdev=tag, mount_tag=tag, bus=f"slot{slot}"
            )
        self.qmp("cont")

    def wait_until_ready(self):
        """Waits for the guest's first line on the control port."""
        control = self.ports["control"]
        deadline = time.monotonic() + READY_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([control], [], [], left)[0]:
                raise HostError(f"not ready after {READY_SECONDS} s")
            byte = control.recv(1)
            if not byte:
                raise HostError("QEMU ended before the machine was ready")
            line += byte

    def run(self, script, timeout):
        """Runs a shell script, copies its output to ours, and returns its exit status.

        Returns None when `timeout` seconds pass first.
        """
        self.ports["control"].sendall(base64.b64encode(script.encode()) + b"\n")
        outputs = {self.ports["stdout"]: 1, self.ports["stderr"]: 2}
        answer = b""
        deadline = time.monotonic() + timeout if timeout else None
        while True:
            left = max(0, deadline - time.monotonic()) if deadline else None
            ready, _, _ = select.select([*outputs, self.ports["control"]], [], [], left)
            if not ready:
                return None
            for port in ready:
                data = port.recv(65536)
                if port in outputs:
                    write_all(outputs[port], data)
                else:
                    answer += data
                if not data:
                    raise HostError("QEMU ended while the command ran")
            if answer.endswith(b"\n"):
                break
        # The guest wrote its output before its status, so what there is of it has arrived.
        while ready := select.select(list(outputs), [], [], 0)[0]:
            for port in ready:
                write_all(outputs[port], port.recv(65536))
        return int(answer.split()[1])

    def end(self):
        """Ends QEMU at once; nothing in the machine is worth keeping."""
        self.process.kill()
        self.process.wait()


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def snapshot(shape, root):
    """The folder of the saved machine of that shape, booted and saved now if there is none."""
    # The root's name stands for all that is in it, QEMU too.
    recipe = repr([shape, Path(__file__).read_bytes()]).encode()
    folder = Path(root) / f"saved-{hashlib.sha256(recipe).hexdigest()[:16]}"
    with open(Path(root) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        print("test host: booting it once, to be restored from then on", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="new.", dir=root) as new:
            log = Path(new) / "boot.log"
            machine = Machine(shape, root, f"{new}/memory", log)
            try:
                machine.wait_until_ready()
                # docs/test-host.md, "What goes wrong": a busy one may lose its timers.
                time.sleep(IDLE_SECONDS)
                machine.save(f"{new}/state")
            except HostError as error:
                kept = Path(tempfile.mkstemp(prefix="hull-test-host.", suffix=".log")[1])
                shutil.copy(log, kept)
                raise HostError(f"{error}; its console is in {kept}") from None
            finally:
                machine.end()
            os.rename(new, folder)
            os.mkdir(new)  # For the context manager to remove.
    return folder


def end_on_signals():
    """Turns the signals that end a program into an exception, so that QEMU is ended too."""

    def end(number, _):
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
