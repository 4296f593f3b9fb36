"""The probe of role preflight, on trees of files that stand in for machines which are not at hand here."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import host_probe
import pytest


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files with their contents below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def pci(address: str, vendor: str, device: str, kind: str) -> dict[str, str]:
    folder = f"bus/pci/devices/{address}"
    return {f"{folder}/vendor": vendor, f"{folder}/device": device, f"{folder}/class": kind}


# --- GPUs ---------------------------------------------------------------------------------------------------


def test_gpus_are_known_by_vendor_and_class(tmp_path: Path) -> None:
    sysfs = tree(
        tmp_path,
        pci("0000:41:00.0", "0x10de\n", "0x20b2\n", "0x030200\n")
        | pci("0000:01:00.0", "0x10de\n", "0x2204\n", "0x030000\n")
        | pci("0000:01:00.1", "0x10de\n", "0x1aef\n", "0x040300\n")  # the sound of that card
        | pci("0000:05:00.0", "0x10de\n", "0x1af1\n", "0x068000\n")
        | pci("0000:00:02.0", "0x1234\n", "0x1111\n", "0x030000\n"),
    )
    assert host_probe.pci_devices(sysfs, host_probe.GPU_CLASSES) == [
        {"address": "0000:01:00.0", "device": "0x2204"},
        {"address": "0000:41:00.0", "device": "0x20b2"},
    ]
    assert len(host_probe.pci_devices(sysfs, (host_probe.NVSWITCH_CLASS,))) == 1


def test_a_machine_without_a_pci_bus_has_no_gpus(tmp_path: Path) -> None:
    assert host_probe.pci_devices(tmp_path, host_probe.GPU_CLASSES) == []


VARIABLE = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.mark.parametrize(("value", "enabled"), [("\x06\0\0\0\x01", True), ("\x06\0\0\0\0", False)])
def test_secure_boot_is_the_byte_after_the_attributes(tmp_path: Path, value: str, enabled: bool) -> None:
    assert host_probe.secure_boot(tree(tmp_path, {VARIABLE: value}))["enabled"] is enabled


def test_secure_boot_is_off_without_uefi_and_unknown_where_it_is_hidden(tmp_path: Path) -> None:
    assert host_probe.secure_boot(tmp_path)["enabled"] is False
    (tmp_path / "firmware/efi").mkdir(parents=True)
    assert host_probe.secure_boot(tmp_path)["enabled"] is None


def test_the_loaded_modules_version_is_the_kernels_word(tmp_path: Path) -> None:
    assert (
        host_probe.driver(tree(tmp_path, {"module/nvidia/version": "535.309.01\n"}))["module"] == "535.309.01"
    )
    assert host_probe.driver(tmp_path / "none")["module"] is None


@pytest.mark.parametrize("version", ["535.309.01", "535.309.01-1", "1:535.309.01-0ubuntu0.24.04.2"])
def test_upstream_version(version: str) -> None:
    assert host_probe.upstream(version) == "535.309.01"


# --- kernels ------------------------------------------------------------------------------------------------

BOOT = {
    "boot/vmlinuz-6.1.0": "",
    "boot/vmlinuz-6.1.0-9-amd64": "",
    "boot/vmlinuz-6.1.0-18-amd64": "",
    "boot/vmlinuz-6.1.0-18-cloud-amd64": "",
    "boot/initrd.img-6.1.0-40-amd64": "",
}
ENTRY = "gnulinux-advanced-2b1c>gnulinux-6.1.0-9-amd64-advanced-2b1c"


def next_kernel(root: Path, **files: str) -> str:
    tree(root, BOOT | {name.replace("__", "/"): content for name, content in files.items()})
    return str(host_probe.kernels(root / "boot", root / "grub", "6.1.0-9-amd64")["next"])


def test_the_newest_kernel_boots_next_by_the_order_of_versions(tmp_path: Path) -> None:
    assert next_kernel(tmp_path) == "6.1.0-18-cloud-amd64"
    assert next_kernel(tmp_path, grub="GRUB_DEFAULT=0\n") == "6.1.0-18-cloud-amd64"
    assert host_probe.kernels(tmp_path / "boot", tmp_path / "grub", "x")["installed"] == [
        "6.1.0",
        "6.1.0-9-amd64",
        "6.1.0-18-amd64",
        "6.1.0-18-cloud-amd64",
    ]


@pytest.mark.parametrize(
    ("settings", "environment", "kernel"),
    [
        (f'GRUB_DEFAULT="{ENTRY}"\n', "", "6.1.0-9-amd64"),
        ("GRUB_DEFAULT=saved\n", f"saved_entry={ENTRY}\n", "6.1.0-9-amd64"),
        ("GRUB_DEFAULT=saved\n", "", "6.1.0-18-cloud-amd64"),
        ("GRUB_DEFAULT=0\n", f"next_entry={ENTRY}\n", "6.1.0-9-amd64"),
        ("GRUB_DEFAULT='Debian GNU/Linux, with Linux 6.1.0-18-amd64'\n", "", "6.1.0-18-amd64"),
        ("GRUB_DEFAULT=gnulinux-6.1.0-40-amd64-advanced\n", "", "6.1.0-18-cloud-amd64"),
    ],
)
def test_grub_may_name_another_kernel(tmp_path: Path, settings: str, environment: str, kernel: str) -> None:
    assert next_kernel(tmp_path, grub=settings, boot__grub__grubenv=environment) == kernel


def test_a_container_goes_on_with_the_kernel_that_runs(tmp_path: Path) -> None:
    assert host_probe.kernels(tmp_path, tmp_path / "grub", "6.1.0-9-amd64")["next"] == "6.1.0-9-amd64"


@pytest.fixture
def modinfo(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that modinfo, which there may be none of here, is asked about; it always answers 535.309.01."""
    asked: list[str] = []

    def run(*command: str, any_status: bool = False) -> str:
        assert command[:3] == ("modinfo", "-F", "version")
        asked.append(Path(command[3]).name)
        return "535.309.01"

    monkeypatch.setattr(host_probe, "run", run)
    return asked


@pytest.mark.parametrize(
    "file",
    [
        "updates/dkms/nvidia-current.ko",
        "updates/dkms/nvidia.ko.zst",
        "kernel/nvidia-535srv/nvidia.ko",
        "updates/dkms/nvidia-tesla-535-current.ko.xz",
    ],
)
def test_the_nvidia_module_is_found_under_its_many_names(
    tmp_path: Path, modinfo: list[str], file: str
) -> None:
    tree(
        tmp_path, {"6.1/modules.dep": f"kernel/fs/ext4.ko: \n{file}: kernel/x.ko\n", "6.1/build/Makefile": ""}
    )
    assert host_probe.module_for("6.1", tmp_path) == {"module": "535.309.01", "headers": True}
    assert modinfo == [Path(file).name]


@pytest.mark.parametrize(
    "file",
    ["nvidia-drm.ko", "nvidia-current-uvm.ko", "nvidia-modeset.ko.zst", "nvidiafb.ko", "i2c-nvidia-gpu.ko"],
)
def test_other_modules_of_that_name_are_not_it(tmp_path: Path, modinfo: list[str], file: str) -> None:
    tree(tmp_path, {"6.1/modules.dep": f"updates/dkms/{file}:\n"})
    assert host_probe.module_for("6.1", tmp_path) == {"module": None, "headers": False}
    assert modinfo == []


# --- disk and network ---------------------------------------------------------------------------------------


def block_device(root: Path, name: str, below: tuple[str, ...] = (), **files: str) -> Path:
    """A device as the kernel shows it, with the devices that it is made of."""
    device = root / "devices" / name
    tree(device, {"size": "1"} | {key.replace("__", "/"): value for key, value in files.items()})
    for slave in below:
        link = device / "slaves" / slave.rpartition("/")[2]
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root / "devices" / slave)
    return device


def test_a_raid_of_partitions_shows_its_disks(tmp_path: Path) -> None:
    for disk in ("nvme0n1", "nvme1n1"):
        block_device(tmp_path, disk, queue__rotational="0")
        block_device(tmp_path, f"{disk}/{disk}p2", partition="2")
    raid = block_device(tmp_path, "md0", ("nvme0n1/nvme0n1p2", "nvme1n1/nvme1n1p2"), md__level="raid0")
    volume = block_device(tmp_path, "dm-0", ("md0",))
    assert [disk.name for disk in host_probe.whole_disks(volume)] == ["nvme0n1", "nvme1n1"]
    numbers = os.stat(tmp_path).st_dev
    link = tmp_path / f"dev/block/{os.major(numbers)}:{os.minor(numbers)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(raid)
    found = host_probe.disk(tmp_path / "not/yet/there", tmp_path)
    assert (found["path"], found["nvme"], found["rotational"], found["raid"]) == (
        str(tmp_path),
        True,
        False,
        "raid0",
    )
    assert 0 < found["free_gb"] <= found["size_gb"]


def test_a_file_system_without_a_device_tells_no_kind(tmp_path: Path) -> None:
    found = host_probe.disk(tmp_path, tmp_path / "none")
    assert (found["disks"], found["nvme"], found["rotational"]) == ([], None, None)


ROUTES = "Iface\tDestination\tGateway\nwg0\t000A0A0A\t00000000\neno1\t00000000\t010A0A0A\n"


@pytest.mark.parametrize(("speed", "mbit"), [("10000\n", 10000), ("-1\n", None)])
def test_the_link_is_that_of_the_default_route(tmp_path: Path, speed: str, mbit: int | None) -> None:
    tree(tmp_path, {"route": ROUTES, "class/net/eno1/speed": speed, "class/net/wg0/speed": "1\n"})
    assert host_probe.network(tmp_path / "route", tmp_path) == {"interface": "eno1", "mbit": mbit}
    assert host_probe.network(tmp_path / "absent", tmp_path)["interface"] is None


def test_system_and_memory(tmp_path: Path) -> None:
    tree(
        tmp_path, {"os": 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="24.04"\n', "mem": "MemTotal:   65793356 kB\n"}
    )
    assert host_probe.system(tmp_path / "os") == {"id": "ubuntu", "version": "24.04"}
    assert host_probe.memory_gb(tmp_path / "mem") == 62.7


# --- packages -----------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock, as dpkg does."""
    (tmp_path / "dpkg").mkdir()
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "dpkg/lock-frontend")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_a_held_lock_names_its_holder(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    lock = host_probe.packages(tmp_path, Path("/proc"))["lock"]
    assert lock["pid"] == holder.pid
    assert lock["lock"] == str(tmp_path / "dpkg/lock-frontend")
    assert "time.sleep(60)" in lock["command"]


def test_a_lock_that_is_let_go_in_time_is_waited_for(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    assert host_probe.settled_packages(tmp_path, Path("/proc"), 0)["lock"]["pid"] == holder.pid
    threading.Timer(0.1, holder.kill).start()
    assert host_probe.settled_packages(tmp_path, Path("/proc"), 60)["lock"] is None


def test_asking_for_a_lock_does_not_take_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    assert host_probe.lock_holder(lock, Path("/proc")) is None
    assert host_probe.lock_holder(tmp_path / "absent", Path("/proc")) is None
    assert not (tmp_path / "absent").exists()
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_upgrader_is_told_from_its_shutdown_helper(tmp_path: Path) -> None:
    python = "/usr/bin/python3\0"
    waiting = f"{python}/usr/share/unattended-upgrades/unattended-upgrade-shutdown\0--wait-for-signal\0"
    tree(tmp_path, {"41/cmdline": waiting, "42/cmdline": "/usr/bin/less\0unattended-upgrade\0"})
    assert not host_probe.upgrade_runs(tmp_path)
    tree(tmp_path, {"43/cmdline": f"{python}/usr/bin/unattended-upgrade\0"})
    assert host_probe.upgrade_runs(tmp_path)


DPKG = """ii |bash|5.2.15-2+b7
iF |dkms|3.0.10-8
iU |linux-image-amd64|6.1.140-1
iiR|udev|252.39-1
it |man-db|2.11.2-2
rc |nvidia-docker2|2.13.0-1
ii |nvidia-fabricmanager-535|535.309.01-1"""


def test_packages_that_dpkg_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_probe, "run", lambda *_, **__: DPKG)
    found = host_probe.packages(tmp_path, tmp_path)
    assert found["broken"] == ["dkms", "linux-image-amd64", "udev"]
    assert found["nvidia_docker2"] is False, "removed, its configuration left"
    assert found["fabric_manager"] == "535.309.01"


# --- the whole ----------------------------------------------------------------------------------------------


def test_this_machine_is_described_without_an_error() -> None:
    found = host_probe.probe(Path("/var/lib/maya1/models"), Path("/sys"))
    assert found["kernel"]["running"] == os.uname().release
    assert found["vcpus"] >= 1
    assert found["memory_gb"] > 0


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    assert host_probe.run("no-such-program") is None
    assert host_probe.run("false") is None
    assert host_probe.text(tmp_path / "absent") is None
