"""A Debian 12 guest in QEMU: what only a kernel of its own can prove.

Its root file system is that of a lab host, made natively where that is fast (packages, DKMS builds), then
copied into a disk and booted. Under emulation a guest is about ten times slower than the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from mayafleet import lab, project

BOOT_SECONDS = 300.0
PROBE_SECONDS = 30.0
DISK = "12G"
CACHE = project.root() / ".cache" / "vm"
console = Console()


@dataclass(frozen=True)
class Root:
    """A folder with a disk, the kernels that it holds, and the key that opens its user `ops`."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "root.img"

    @property
    def boot(self) -> Path:
        return self.folder / "boot"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def token_key(self) -> Path:
        """Signs tokens that its speech service takes, where it has one."""
        return self.folder / "token.pem"

    def variables(self) -> dict[str, Any]:
        """Ansible's variables of the lab host that it was made of."""
        found: dict[str, Any] = json.loads((self.folder / "variables.json").read_text())
        return found

    def kernels(self) -> list[str]:
        return sorted(path.name.removeprefix("vmlinuz-") for path in self.boot.glob("vmlinuz-*"))


def make_root(name: str, playbooks: Sequence[Path], made_from: Sequence[Path], **variables: Any) -> Root:
    """Run playbooks on a lab host and copy its files into a disk; once, until a file of these changes.

    made_from: files and folders that the playbooks use. variables: more than the lab's inventory has.
    Packages are those of the day it was made.
    """
    lab.ensure_engine(console)
    image = lab.ensure_image("maya1-lab-host", lab.HOST_PACKAGES)
    sources = [Path(__file__), *playbooks, *made_from]
    folder = CACHE / f"{name}-{_digest(sources, image, json.dumps(variables))}"
    if folder.exists():
        console.print(f"root {name}: kept from before, in {folder}")
        return Root(folder)
    for older in CACHE.glob(f"{name}-*"):
        shutil.rmtree(older)
    work = CACHE / f"{name}-work"
    inventory, state = work / "inventory", work / "state"
    shutil.copytree(project.root() / "inventories/lab", inventory, ignore=shutil.ignore_patterns("lab.yml"))
    host_lab = lab.Lab(f"maya1-vm-{name}", inventory, state)
    host = host_lab.hosts[0]
    try:
        lab.discard(host_lab)  # what a run that was cut off left
        lab.boot(host_lab, [host], console)
        for playbook in playbooks:
            play(playbook, inventory, variables, host)
        made = work / "made"
        made.mkdir()
        with lab.step(console, f"disk of {name}"):
            script = EXPORT.format(container=host_lab.container(host), host=host, made=made, disk_size=DISK)
            lab.run(lab.as_root(["sh", "-euc", script]))
            lab.run(lab.as_root(["chown", "-R", f"{os.getuid()}", str(made)]))
        shutil.copy(state / "ssh/id_ed25519", made)
        shutil.copy(state / "jwt/private.pem", made / "token.pem")
        (made / "variables.json").write_text(
            _output(["ansible-inventory", "-i", str(inventory), "--host", host])
        )
        made.rename(folder)
    finally:
        lab.discard(host_lab)
        shutil.rmtree(work)
    return Root(folder)


# The host shuts down, so that nothing is copied half written. Files that Docker mounts into a container are
# empty in the copy, and the engine's folder is a volume. By /.dockerenv programs know a container.
EXPORT = """
docker kill --signal RTMIN+3 {container} >/dev/null
docker wait {container} >/dev/null
tree={made}/tree
mkdir $tree
docker export {container} | tar -x -C $tree
cp -a $(docker volume inspect --format '{{{{.Mountpoint}}}}' {container}-docker)/. $tree/var/lib/docker
rm -f $tree/.dockerenv
echo {host} > $tree/etc/hostname
echo 127.0.0.1 localhost {host} > $tree/etc/hosts
echo nameserver 10.0.2.3 > $tree/etc/resolv.conf
cp -r $tree/boot {made}/boot
truncate -s {disk_size} {made}/root.img
mke2fs -q -t ext4 -d $tree {made}/root.img
rm -rf $tree
"""


class Guest:
    """A machine that boots a root. What it changes lies in a layer of its own and goes with it."""

    def __init__(self, root: Root, folder: Path, kernel: str | None = None) -> None:
        """kernel: the one that a boot loader would choose; by default the newest."""
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.folder = root, folder
        self.kernel = kernel or root.kernels()[-1]
        self.port, self.https_port = _free_ports(2)
        self.console = folder / "console.log"
        layer = folder / "layer.qcow2"
        lab.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(root.disk), str(layer)])
        kernel_file = root.boot / f"vmlinuz-{self.kernel}"
        # With -kernel, QEMU loads the same kernel again when the guest restarts.
        command = [
            # It ends with the tests, even where these are killed.
            "setpriv", "--pdeathsig", "KILL",
            "qemu-system-x86_64", "-machine", "q35", *accelerator(kernel_file), "-smp", "2", "-m", "3072",
            "-display", "none", "-serial", f"file:{self.console}", "-monitor", "none",
            "-kernel", str(kernel_file),
            "-initrd", str(root.boot / f"initrd.img-{self.kernel}"),
            "-append", "root=/dev/vda rw console=ttyS0 quiet",
            "-drive", f"file={layer},if=virtio,cache=unsafe",
            "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22"
                       f",hostfwd=tcp:127.0.0.1:{self.https_port}-:443",
            "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Guest:
        try:
            with lab.step(console, f"boot of a guest with {self.kernel}"):
                self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, other_than: str = "") -> str:
        """Wait until it has booted, and its boot id is another one than given. Returns the boot id."""
        until = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, f"QEMU ended: {self.log()}"
            with suppress(subprocess.SubprocessError):
                boot_id = self.run("cat /proc/sys/kernel/random/boot_id", timeout=30).strip()
                if boot_id != other_than:
                    self.run("systemctl is-system-running --wait || true", timeout=300)
                    return boot_id
            time.sleep(2)
        raise AssertionError(f"The guest did not boot within {BOOT_SECONDS:.0f} s: {self.log()}")

    def reboot(self) -> str:
        """Have it boot again. Returns the new boot id."""
        before = self.wait()
        self.run("systemd-run --on-active=1 systemctl reboot")
        return self.wait(other_than=before)

    def run(self, script: str, timeout: float = 600) -> str:
        """Run a script as root, over SSH. Raises CalledProcessError."""
        command = ["ssh", *self._ssh_options(), "-p", str(self.port), "ops@127.0.0.1", "sudo sh -s"]
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            failed = subprocess.CalledProcessError(done.returncode, script, done.stdout, done.stderr)
            failed.add_note(done.stdout[-1000:] + done.stderr[-1000:])
            raise failed
        return done.stdout

    def play(
        self, playbook: Path, hosts: Mapping[str, Mapping[str, Any]] | None = None, **variables: Any
    ) -> str:
        """Run a playbook against the guest, with the variables of the host that it was made of.

        hosts: variables by host, more for `guest` and those of hosts that the run leaves out.
        """
        told = hosts or {}
        inventory = self.folder / "guest.json"
        reach = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "firewall_ssh_port": 22,
            "ansible_ssh_common_args": " ".join(self._ssh_options()),
            "ansible_ssh_timeout": 120,
        }
        every = {**told, "guest": {**self.root.variables(), **reach, **told.get("guest", {})}}
        groups = {name: {"hosts": dict.fromkeys(every)} for name in ("gpu", "monitoring", "eu_frankfurt")}
        inventory.write_text(json.dumps({"all": {"hosts": every, "children": groups}}))
        return play(playbook, inventory, variables, "guest")

    def log(self) -> str:
        """The end of what it wrote to its console."""
        return self.console.read_text(errors="replace")[-2000:] if self.console.exists() else "no console"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)

    def _ssh_options(self) -> list[str]:
        known = self.folder / "known_hosts"
        options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=accept-new", "IdentitiesOnly=yes",
                   "ConnectTimeout=30", "LogLevel=ERROR"]  # fmt: skip
        return ["-i", str(self.root.key), *(part for option in options for part in ("-o", option))]


def play(playbook: Path, inventory: Path, variables: Mapping[str, Any], host: str) -> str:
    """Run a playbook. What it printed; AssertionError with that when it fails."""
    command = ["ansible-playbook", "-i", str(inventory), "--limit", host, "-e", json.dumps(variables)]
    with lab.step(console, f"{playbook.name} on {host}"):
        done = subprocess.run(
            [*command, str(playbook)], env=_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def recap(output: str) -> dict[str, int]:
    """What the last line of a run says: ok, changed, failed, ..."""
    last = [line for line in output.splitlines() if " ok=" in line][-1]
    return {name: int(number) for name, number in (field.split("=") for field in last.split(":")[1].split())}


@cache
def accelerator(kernel: Path) -> Sequence[str]:
    """KVM where a kernel boots with it, else emulation: on some machines KVM is there and hangs."""
    emulation = ("-accel", "tcg,thread=multi", "-cpu", "max")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulation
    kvm = ("-accel", "kvm", "-cpu", "host")
    # Without a disk, a kernel ends in a panic; QEMU then ends too.
    probe = [
        "qemu-system-x86_64", "-machine", "q35", *kvm, "-m", "512", "-display", "none", "-monitor", "none",
        "-serial", "none", "-no-reboot", "-kernel", str(kernel), "-append", "panic=-1",
    ]  # fmt: skip
    with suppress(subprocess.TimeoutExpired):
        if subprocess.run(probe, capture_output=True, timeout=PROBE_SECONDS, check=False).returncode == 0:
            return kvm
    console.print("KVM does not get a kernel through its boot here: the guest is emulated, which is slow.")
    return emulation


def _digest(paths: Sequence[Path], *more: str) -> str:
    """Of files, of the files in folders, and of strings."""
    files = sorted(
        file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )
    content = hashlib.sha256("\n".join(more).encode())
    for file in files:
        if "__pycache__" not in file.parts:
            content.update(str(file.relative_to(project.root())).encode() + b"\0" + file.read_bytes())
    return content.hexdigest()[:12]


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stdout


def _environment() -> dict[str, str]:
    return os.environ | project.ansible_environment()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
