#!/usr/bin/python
"""Ansible module: what a host is, as plain data. It reads, and changes nothing.

It needs Python 3.10 and its standard library alone, asks no NVIDIA program (as root, nvidia-smi makes device
nodes even where there is no GPU), and answers None for what a host does not tell.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: host_probe
short_description: What a host is, as plain data
description:
  - Reads system, kernels, GPUs, drivers, disk, memory, network, clock and package state.
  - Changes nothing, in check mode or not.
options:
  model_dir:
    type: str
    required: true
    description: Where models lie or will lie; the disk below it is described.
  lock_wait_seconds:
    type: int
    default: 0
    description: How long to wait for a package operation that is under way.
  sysfs:
    type: str
    default: /sys
    description: Folder to read instead of /sys, for tests.
author: [maya1-fleet]
"""
EXAMPLES = """
- name: Probe the host
  host_probe:
    model_dir: /var/lib/maya1/models
  register: __preflight_probe
"""
RETURN = """
host:
  description: What was found; None for what the host does not tell.
  returned: always
  type: dict
"""

NVIDIA = "0x10de"
# PCI classes: VGA and 3D controllers are GPUs, "other bridge" of this vendor is an NVSwitch.
GPU_CLASSES = ("0x030000", "0x030200")
NVSWITCH_CLASS = "0x068000"

LOCKS = ("dpkg/lock-frontend", "dpkg/lock", "apt/lists/lock")
UPGRADERS = ("/usr/bin/unattended-upgrade", "/usr/bin/unattended-upgrades")
# TIME_ERROR of adjtimex(2)
CLOCK_UNSYNCHRONISED = 5
# Where Debian's and Ubuntu's DKMS keep the key that they sign modules with.
MODULE_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
# The module itself: nvidia, or Debian's nvidia-current, nvidia-tesla-535-current and their -open variants.
NVIDIA_MODULE = re.compile(r"nvidia(?!.*-(?:drm|modeset|uvm|peermem))(?:-[\w-]+)?\.ko(?:\.\w+)?")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "model_dir": {"type": "str", "required": True},
            "lock_wait_seconds": {"type": "int", "default": 0},
            "sysfs": {"type": "str", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    given = module.params
    host = probe(Path(given["model_dir"]), Path(given["sysfs"]), given["lock_wait_seconds"])
    module.exit_json(changed=False, host=host)


def probe(model_dir: Path, sysfs: Path, lock_wait_seconds: float = 0) -> dict[str, Any]:
    """Everything, by topic. Sizes are in GB (10^9 bytes), memory in GiB, speeds in Mbit/s."""
    kernel = kernels(Path("/boot"), Path("/etc/default/grub"), os.uname().release)
    return {
        "system": system(Path("/etc/os-release")),
        "virtualisation": run("systemd-detect-virt") or "none",
        "container": run("systemd-detect-virt", "--container") not in (None, "none"),
        "cgroup": 2 if (sysfs / "fs/cgroup/cgroup.controllers").exists() else 1,
        "vcpus": len(os.sched_getaffinity(0)),
        "memory_gb": memory_gb(Path("/proc/meminfo")),
        "disk": disk(model_dir, sysfs),
        "network": network(Path("/proc/net/route"), sysfs),
        "clock": clock(),
        "kernel": {**kernel, **module_for(kernel["next"], Path("/lib/modules"))},
        # The NVIDIA module and headers of each kernel that could boot here.
        "modules": {name: module_for(name, Path("/lib/modules")) for name in kernel["installed"]},
        "reboot_required": Path("/run/reboot-required").exists(),
        "gpus": pci_devices(sysfs, GPU_CLASSES),
        "nvswitches": len(pci_devices(sysfs, (NVSWITCH_CLASS,))),
        "secure_boot": secure_boot(sysfs),
        "nouveau": {
            "loaded": (sysfs / "module/nouveau").exists(),
            "blacklisted": "blacklist nouveau" in (run("modprobe", "--showconfig") or ""),
        },
        "driver": driver(sysfs),
        "packages": settled_packages(Path("/var/lib"), Path("/proc"), lock_wait_seconds),
        "snap_docker": Path("/snap/bin/docker").exists(),
    }


# --- the machine --------------------------------------------------------------------------------------------


def system(os_release: Path) -> dict[str, str | None]:
    """Distribution and version, by their ids: debian and 12, ubuntu and 24.04."""
    lines = (line.partition("=") for line in (text(os_release) or "").splitlines())
    values = {key: value.strip("\"'") for key, _, value in lines}
    return {"id": values.get("ID"), "version": values.get("VERSION_ID")}


def memory_gb(meminfo: Path) -> float | None:
    found = re.search(r"^MemTotal: +(\d+) kB", text(meminfo) or "", re.MULTILINE)
    return round(int(found[1]) / 1024**2, 1) if found else None


def disk(path: Path, sysfs: Path) -> dict[str, Any]:
    """The file system that holds a path, or will: its nearest folder that exists."""
    while not path.exists():
        path = path.parent
    space = os.statvfs(path)
    device = os.stat(path).st_dev
    block = sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}"
    disks = whole_disks(block)
    return {
        "path": str(path),
        "size_gb": round(space.f_blocks * space.f_frsize / 1e9, 1),
        "free_gb": round(space.f_bavail * space.f_frsize / 1e9, 1),
        "disks": [entry.name for entry in disks],
        "raid": text(block / "md/level"),
        "nvme": all(entry.name.startswith("nvme") for entry in disks) if disks else None,
        "rotational": any(text(entry / "queue/rotational") == "1" for entry in disks) if disks else None,
    }


def whole_disks(block: Path) -> list[Path]:
    """Disks below a block device: a partition's own, and all those of a RAID or a logical volume."""
    if not block.exists():  # overlay, btrfs, tmpfs: no single device
        return []
    block = block.resolve()
    if (block / "partition").exists():
        block = block.parent
    below = sorted((block / "slaves").glob("*"))
    return sorted({disk for slave in below for disk in whole_disks(slave)}) if below else [block]


def network(routes: Path, sysfs: Path) -> dict[str, Any]:
    """The interface of the default route, and its speed where it has one: a virtual one often does not."""
    for line in (text(routes) or "").splitlines()[1:]:
        interface, destination = line.split()[:2]
        if destination == "00000000":
            speed = int(text(sysfs / "class/net" / interface / "speed") or -1)
            return {"interface": interface, "mbit": speed if speed > 0 else None}
    return {"interface": None, "mbit": None}


def clock() -> dict[str, Any]:
    """Whether something keeps the clock right, and how far off it is in seconds where chrony knows.

    The kernel is asked, as timedatectl does through a service that it would have to start.
    """
    # A structure of zeros changes nothing; its layout does not matter here, only that it fits.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    tracking = (run("chronyc", "-c", "tracking") or "").split(",")
    return {
        "synchronised": state != CLOCK_UNSYNCHRONISED if state >= 0 else None,
        "offset_seconds": float(tracking[4]) if len(tracking) > 4 else None,
    }


# --- kernels ------------------------------------------------------------------------------------------------


def kernels(boot: Path, grub_settings: Path, running: str) -> dict[str, Any]:
    """The running kernel, those installed, newest last, and the one that boots next.

    GRUB boots the newest unless its settings name another plainly; a host without kernels of its own (a
    container) goes on with the one that runs.
    """
    names = (image.name.removeprefix("vmlinuz-") for image in boot.glob("vmlinuz-*"))
    installed = sorted(names, key=version_order)
    newest = installed[-1] if installed else running
    chosen = grub_choice(boot, grub_settings, installed)
    return {"running": running, "installed": installed, "next": chosen or newest}


def grub_choice(boot: Path, settings: Path, installed: list[str]) -> str | None:
    """The installed kernel that GRUB is told to boot by name; None where it takes the newest."""
    default = re.findall(r"^GRUB_DEFAULT=[\"']?([^\"'\n]*)", text(settings) or "", re.MULTILINE)
    environment = dict(
        line.split("=", 1) for line in (text(boot / "grub/grubenv") or "").splitlines() if "=" in line
    )
    entry = environment.get("next_entry") or (default[-1] if default else "")
    if entry == "saved":
        entry = environment.get("saved_entry", "")
    named = re.search(r"(?:gnulinux-|with Linux )(\d\S*?)(?:-advanced|-recovery|\s|$)", entry)
    return named[1] if named and named[1] in installed else None


def version_order(version: str) -> list[tuple[int, int, str]]:
    """Sorts 6.1.0-9 before 6.1.0-18."""
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def module_for(kernel: str, modules: Path) -> dict[str, Any]:
    """The version of the NVIDIA module that a kernel would load, and whether one could be built for it."""
    folder = modules / kernel
    version = None
    for line in (text(folder / "modules.dep") or "").splitlines():
        file = line.partition(":")[0]
        if NVIDIA_MODULE.fullmatch(Path(file).name):
            version = run("modinfo", "-F", "version", str(folder / file))
    return {"module": version, "headers": (folder / "build/Makefile").exists()}


# --- GPUs and their driver ----------------------------------------------------------------------------------


def pci_devices(sysfs: Path, classes: tuple[str, ...]) -> list[dict[str, str | None]]:
    """NVIDIA's devices of some PCI classes, in bus order."""
    return [
        {"address": device.name, "device": text(device / "device")}
        for device in sorted((sysfs / "bus/pci/devices").glob("*"))
        if text(device / "vendor") == NVIDIA and text(device / "class") in classes
    ]


def secure_boot(sysfs: Path) -> dict[str, bool | None]:
    """Whether the firmware asks for signed modules, and whether it knows the key that DKMS signs with."""
    variable = next((sysfs / "firmware/efi/efivars").glob("SecureBoot-*"), None)
    if variable is None:  # no UEFI, or a container that does not see it
        return {"enabled": False if not (sysfs / "firmware/efi").exists() else None, "key_enrolled": None}
    # Four bytes of attributes, then the value.
    enabled = variable.read_bytes()[4:5] == b"\x01"
    keys = [key for key in MODULE_KEYS if Path(key).exists()]
    answers = [run("mokutil", "--test-key", key, any_status=True) for key in keys] if enabled else []
    return {
        "enabled": enabled,
        "key_enrolled": any("already enrolled" in (answer or "") for answer in answers),
    }


def driver(sysfs: Path) -> dict[str, str | None]:
    """Versions of the module that is loaded, and of the library that programs load."""
    listing = run("/sbin/ldconfig", "-p") or ""
    library = re.search(r"libnvidia-ml\.so\.1 .*=> (.+)", listing)
    file = os.path.realpath(library[1]) if library else ""
    return {
        "module": text(sysfs / "module/nvidia/version"),
        "library": file.partition("libnvidia-ml.so.")[2] or None,
    }


def upstream(package_version: str) -> str:
    """535.309.01 of 1:535.309.01-0ubuntu1."""
    return package_version.rpartition(":")[2].partition("-")[0]


# --- packages -----------------------------------------------------------------------------------------------


def settled_packages(var_lib: Path, proc: Path, wait_seconds: float) -> dict[str, Any]:
    """The state of packages, once nothing changes it any more or the time to wait is over."""
    deadline = time.monotonic() + wait_seconds
    while (found := packages(var_lib, proc)) and (found["lock"] or found["upgrading"]):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    return found


def packages(var_lib: Path, proc: Path) -> dict[str, Any]:
    """Who holds a lock of dpkg or apt, what dpkg left half done, and packages that get in the way."""
    listing = run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}|${Package}|${Version}\n") or ""
    states = [line.split("|") for line in listing.splitlines()]
    installed = {name: version for state, name, version in states if state[1] == "i"}
    manager = [upstream(v) for name, v in installed.items() if name.startswith("nvidia-fabricmanager")]
    return {
        "lock": next((holder for lock in LOCKS if (holder := lock_holder(var_lib / lock, proc))), None),
        # Second letter: half-installed, unpacked, half-configured; third: must be installed again.
        "broken": [name for state, name, _ in states if state[1] in "HUF" or state[2:3] == "R"],
        "upgrading": upgrade_runs(proc),
        "nvidia_docker2": "nvidia-docker2" in installed,
        "fabric_manager": next(iter(manager), None),
    }


def lock_holder(lock: Path, proc: Path) -> dict[str, Any] | None:
    """The process that holds a lock. It is asked of the kernel; the lock itself is not touched."""
    # struct flock: type, whence, start, length, pid
    layout = "hhqqi4x"
    question = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with lock.open("rb") as file:
            kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:  # no lock file: nothing was ever locked
        return None
    if kind == fcntl.F_UNLCK:
        return None
    return {"lock": str(lock), "pid": pid, "command": command_of(proc / str(pid))}


def upgrade_runs(proc: Path) -> bool:
    """Whether unattended-upgrades installs something now; its helper that waits for shutdown always runs."""
    return any(
        word in UPGRADERS for process in proc.glob("[0-9]*") for word in command_of(process).split()[:2]
    )


def command_of(process: Path) -> str:
    return (text(process / "cmdline") or "").replace("\0", " ").strip()


# --- reading ------------------------------------------------------------------------------------------------


def text(path: Path) -> str | None:
    """What a file says; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def run(*command: str, any_status: bool = False) -> str | None:
    """What a program prints; None where it is not installed or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=30, env=ENVIRONMENT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 or any_status else None


ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


if __name__ == "__main__":
    main()
