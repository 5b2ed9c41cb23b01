"""A virtual machine of Debian 13, from the image that tests/vm/prepare has made.

QEMU starts the kernel directly. Commands run in the machine through QEMU's guest agent.
"""

import base64
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
PLACE = Path("/var/tmp/virt-hooks-vm")
# the display adapters have no driver until a test asks for bochs: the firmware's framebuffer stays
KERNEL = [
    "-kernel",
    PLACE / "vmlinuz",
    "-initrd",
    PLACE / "initrd.img",
    "-append",
    "root=/dev/vda rw console=ttyS0 maxcpus=1 intel_iommu=on iommu=pt modprobe.blacklist=bochs",
]
# an IOMMU and two display adapters, for guests of the machine; the firmware shows the first one
BOARD = ["-machine", "q35,kernel-irqchip=split", "-bios", "/usr/share/ovmf/OVMF.fd",
         "-device", "intel-iommu,intremap=on,caching-mode=on",
         "-device", "bochs-display,addr=0x10", "-device", "VGA,addr=0x11"]  # fmt: skip
AGENT = ["-device", "virtio-serial",
         "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]  # fmt: skip
KVM = ["-accel", "kvm", "-cpu", "host"]
# one thread: Linux patches its code while it runs, and a second one of QEMU 7.2 meets it half-way
EMULATION = ["-accel", "tcg,thread=single", "-cpu", "max"]
PATIENCE = 900  # seconds for a boot, or a command: emulated, beside others, each can take minutes
KVM_BOOTS = 30  # seconds in which systemd runs, if KVM works

sys.path.insert(0, str(HERE.parent))
from harness import run  # noqa: E402
from libvirt import definition, wait_until  # noqa: E402, F401


class Machine:
    """A machine with disks of its own, which stay from one start to the next."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="virt-hooks-vm-", dir="/var/tmp"))
        self.console = self.directory / "console"
        run(["cp", "--sparse=always", PLACE / "disk", self.directory], check=True, timeout=300)
        run(["truncate", "-s", "1G", self.directory / "data"], check=True)
        run(["mkfs.ext4", "-q", self.directory / "data"], check=True)
        self.process = self.connection = None
        self.accelerator = KVM if Path("/dev/kvm").exists() else EMULATION

    def start(self):
        """Start it; return when the agent answers and libvirtd has started what it starts."""
        self.launch()
        if self.accelerator is KVM and not self.boots():
            self.cut_power()
            self.accelerator = EMULATION
            self.launch()
        self.wait_for_boot()

    def boots(self):
        """Whether it boots within KVM_BOOTS: a KVM that does not work hangs it, or ends QEMU."""
        until = time.monotonic() + KVM_BOOTS
        while self.process.poll() is None and time.monotonic() < until:
            if self.console.exists() and b"systemd" in self.console.read_bytes():
                return True
            time.sleep(0.1)
        return False

    def launch(self):
        agent = f"socket,id=agent,path={self.directory}/agent,server=on,wait=off"
        disks = [f"file={self.directory}/{name},format=raw,if=virtio" for name in ("disk", "data")]
        command = ["nice", "qemu-system-x86_64", "-nodefaults", "-display", "none"]
        command += ["-m", "1G", "-smp", "3", *self.accelerator, *BOARD, *KERNEL]
        command += ["-chardev", agent, *AGENT, "-serial", f"file:{self.console}"]
        command += ["-drive", disks[0], "-drive", disks[1]]
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def wait_for_boot(self, before=None):
        """Wait until it is up, after the boot of an id, if any."""
        wait_until(lambda: self.boot_id() not in (None, before), PATIENCE)
        self.done("systemctl start multi-user.target")

    def boot_id(self):
        """An id of the boot; None while nobody answers."""
        if self.process.poll() is not None:
            raise RuntimeError(f"QEMU has ended: {(self.directory / 'log').read_text()}")
        try:
            self.connect()
            return self.done("cat /proc/sys/kernel/random/boot_id", 10)
        except OSError:  # also a time-out
            return None

    def connect(self):
        """Connect to the agent, and skip what it still says to others."""
        if self.connection:
            self.connection.close()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(10)
        self.connection.connect(f"{self.directory}/agent")
        number = time.monotonic_ns()
        self.send("guest-sync", id=number)
        while self.receive().get("return") != number:
            pass
        self.connection.settimeout(120)

    def send(self, command, **arguments):
        request = {"execute": command, "arguments": arguments}
        self.connection.sendall(json.dumps(request).encode() + b"\n")

    def receive(self):
        line = b""
        while not line.endswith(b"\n"):
            data = self.connection.recv(1 << 16)
            if not data:
                raise ConnectionError("QEMU has closed the agent's socket")
            line += data
        return json.loads(line)

    def ask(self, command, **arguments):
        """The agent's answer; OSError where it has none, since it has just been started anew."""
        self.send(command, **arguments)
        answer = self.receive()
        if "return" not in answer:
            raise ConnectionError(f"{command}: {answer}")
        return answer["return"]

    def run(self, command, seconds=PATIENCE, given=b""):
        """Run a shell command in the machine, with something on stdin, if it is to read that."""
        arguments = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        arguments["input-data"] = base64.b64encode(given).decode()
        pid = self.ask("guest-exec", **arguments)["pid"]
        began = time.monotonic()
        while not (status := self.ask("guest-exec-status", pid=pid))["exited"]:
            elapsed = time.monotonic() - began
            if elapsed > seconds:
                raise TimeoutError(f"not within {seconds} s: {command}")
            time.sleep(0.1 + elapsed / 10)  # each question takes the machine's time
        said = [status.get(name, "") for name in ("out-data", "err-data")]
        stdout, stderr = (base64.b64decode(text).decode(errors="replace") for text in said)
        return subprocess.CompletedProcess(command, status.get("exitcode"), stdout, stderr)

    def done(self, command, seconds=PATIENCE, given=b""):
        """Run a shell command, which must succeed; return what it printed."""
        result = self.run(command, seconds, given)
        if result.returncode:
            raise AssertionError(f"{command}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result.stdout.strip()

    def write(self, path, data, mode="644"):
        if isinstance(data, str):
            data = data.encode()
        self.done(f"mkdir -p $(dirname {path}); cat >{path}; chmod {mode} {path}", given=data)

    def reboot(self):
        before = self.boot_id()
        self.done("(sleep 1; systemctl reboot) >/dev/null 2>&1 &")  # the agent can still answer
        self.wait_for_boot(before)

    def cut_power(self):
        self.process.kill()
        self.process.wait()

    def remove(self):
        if self.process:
            self.cut_power()
        shutil.rmtree(self.directory)
