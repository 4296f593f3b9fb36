"""A good host passes; what is wrong with one is named with the way to mend it; and the probe leaves no trace.

The host is a container: its GPU, Secure Boot and nouveau are played by a folder of files that stands in for
/sys. Locks, half-configured packages, kernels and the disk are the host's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Converge, said
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parents[3]
# An A10 where there is none.
FAKE = "/root/fake-sys"
GPU = f"{FAKE}/bus/pci/devices/0000:01:00.0"
FILES = {"vendor": "0x10de", "device": "0x2236", "class": "0x030200"}
MAKE_GPU = f"mkdir -p {GPU}; " + "; ".join(f"echo {value} > {GPU}/{name}" for name, value in FILES.items())
SECURE_BOOT = f"{FAKE}/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture
def gpu(host: Host) -> Iterator[dict[str, Any]]:
    """A folder that stands in for /sys and holds one GPU, and the inventory that says so."""
    host.check_output(MAKE_GPU)
    yield {
        "preflight_sysfs": FAKE,
        "preflight_hardware": {"gpu_count": 1},
        "preflight_accept": ["virtualisation"],
    }
    host.check_output(f"rm -r {FAKE}")


def test_a_good_host_passes(converge: Converge) -> None:
    run = converge()
    assert run.returncode == 0, run.stdout
    assert "changed=0" in run.stdout


# Files newer than the mark on the host's own disk, less the journal of logins and Ansible's own folder in
# /tmp, which it unpacks modules into and removes; devices, loaded modules, packages.
FOOTPRINT = (
    "find / -xdev -newer /root/before -not -path '/var/log/*' -not -path /tmp;"
    " ls -l /dev; lsmod; dpkg-query -W -f '${Package} ${Version} ${Status}\\n'"
)


def test_the_probe_leaves_no_trace(host: Host, converge: Converge, gpu: dict[str, Any]) -> None:
    converge(**gpu)  # the first login makes a session's files
    host.check_output("touch /root/before; sleep 1")
    before = host.check_output(FOOTPRINT)
    assert converge(**gpu).returncode == 0
    assert host.check_output(FOOTPRINT) == before
    # That comparison would have shown a change.
    host.check_output("touch /etc/canary")
    assert "/etc/canary" in host.check_output(FOOTPRINT)
    host.check_output("rm /etc/canary /root/before")


def test_a_missing_gpu_stops_the_run(converge: Converge) -> None:
    run = converge(preflight_hardware={"gpu_count": 2})
    assert run.returncode != 0
    assert (
        "gpu_count: 0 on the PCI bus; wanted: 2, as hardware.gpu_count says. A GPU has gone missing"
        in said(run)
    )


def test_gpus_are_counted_on_the_pci_bus(converge: Converge, gpu: dict[str, Any]) -> None:
    assert converge(**gpu).returncode == 0
    run = converge(**gpu | {"preflight_hardware": {"gpu_count": 0}})
    assert "gpu_count: 1 on the PCI bus; wanted: 0" in said(run)


def test_a_gpu_that_the_bundle_cannot_drive_is_refused(
    host: Host, converge: Converge, gpu: dict[str, Any]
) -> None:
    host.check_output(f"echo 0x2b85 > {GPU}/device")  # an RTX 5090
    run = converge(**gpu, fleet_bundle="535")
    assert run.returncode != 0
    assert "gpu_bundle: driver for GeForce RTX 5090: driver 535 does not know Blackwell" in said(run)
    assert "Set fleet_bundle to 580." in said(run)
    assert converge(**gpu, fleet_bundle="580").returncode == 0


def test_another_gpu_than_the_one_rented_is_refused(converge: Converge, gpu: dict[str, Any]) -> None:
    run = converge(**gpu | {"preflight_hardware": {"gpu_count": 1, "gpu": "NVIDIA A100"}})
    assert run.returncode != 0
    assert "gpu_model: A10; wanted: A100, as hardware.gpu says" in said(run)


def test_a_gpu_inside_a_container_is_refused_unless_that_is_accepted(
    converge: Converge, gpu: dict[str, Any]
) -> None:
    run = converge(**gpu | {"preflight_accept": []})
    assert run.returncode != 0
    assert "which can load the NVIDIA module" in said(run)


def test_secure_boot_without_a_key_is_refused_with_the_way_to_enrol_it(
    host: Host, converge: Converge, gpu: dict[str, Any]
) -> None:
    host.check_output(
        f"mkdir -p $(dirname {SECURE_BOOT}) && printf '\\006\\000\\000\\000\\001' > {SECURE_BOOT}"
    )
    run = converge(**gpu)
    assert run.returncode != 0
    assert "mokutil --import" in said(run)


def test_nouveau_is_told_and_hinders_nothing(host: Host, converge: Converge, gpu: dict[str, Any]) -> None:
    host.check_output(f"mkdir -p {FAKE}/module/nouveau")
    run = converge(**gpu)
    assert run.returncode == 0
    assert "nouveau: loaded; wanted: not loaded." in said(run)


def test_a_kernel_that_would_boot_without_the_driver_is_refused(
    host: Host, converge: Converge, gpu: dict[str, Any]
) -> None:
    host.check_output(f"mkdir -p {FAKE}/module/nvidia && echo 535.309.01 > {FAKE}/module/nvidia/version")
    # By text the second would come last.
    host.check_output("touch /boot/vmlinuz-6.1.0-100-amd64 /boot/vmlinuz-6.1.0-99-amd64")
    try:
        run = converge(**gpu)
        assert run.returncode != 0
        assert "no NVIDIA module for 6.1.0-100-amd64, which boots next" in said(run)
        assert "Install linux-headers-6.1.0-100-amd64" in said(run)
    finally:
        host.check_output("rm /boot/vmlinuz-6.1.0-*")


@pytest.fixture
def held_lock(host: Host) -> Iterator[None]:
    """A process of the host holds dpkg's lock, as an upgrade does."""
    hold = (
        "import fcntl, time; lock = open('/var/lib/dpkg/lock-frontend', 'w');"
        " fcntl.lockf(lock, fcntl.LOCK_EX); open('/run/held', 'w'); time.sleep(600)"
    )
    host.check_output("rm -f /run/held; systemd-run --unit holder python3 -c %s", hold)
    host.check_output("for i in $(seq 100); do [ -e /run/held ] && exit; sleep 0.1; done; exit 1")
    yield
    host.check_output("systemctl stop holder")


def test_a_held_package_lock_names_its_holder(host: Host, converge: Converge, held_lock: None) -> None:
    run = converge(preflight_lock_wait_seconds=1)
    assert run.returncode != 0
    pid = host.check_output("systemctl show --property MainPID --value holder")
    assert f"/var/lib/dpkg/lock-frontend is held by process {pid}" in said(run)


@pytest.fixture
def half_configured(host: Host) -> Iterator[str]:
    """A package whose installation broke in the middle."""
    host.check_output("mkdir -p /root/broken/DEBIAN")
    control = (
        "Package: maya1-broken\\nVersion: 1\\nArchitecture: all\\nMaintainer: tests\\nDescription: breaks\\n"
    )
    host.check_output(f"printf '{control}' > /root/broken/DEBIAN/control")
    # A package that comes with a program that fails when it is configured.
    host.check_output("ln -s /bin/false /root/broken/DEBIAN/postinst")
    host.check_output("dpkg-deb --build /root/broken /root/broken.deb")
    assert host.run("dpkg --install /root/broken.deb").failed
    yield "maya1-broken"
    host.check_output("dpkg --purge maya1-broken; rm -r /root/broken /root/broken.deb")


def test_a_half_configured_package_is_named(converge: Converge, half_configured: str) -> None:
    run = converge()
    assert run.returncode != 0
    assert f"half installed: {half_configured}" in said(run)
    assert "dpkg --configure -a" in said(run)


def test_a_machine_smaller_than_the_inventory_says_is_refused(converge: Converge) -> None:
    run = converge(preflight_hardware={"vcpus": 4096, "memory_gb": 65536})
    assert run.returncode != 0
    assert "4096 vCPUs, as hardware.vcpus says" in said(run)
    assert "65536 GB, as hardware.memory_gb says" in said(run)


def test_check_mode_judges_too(converge: Converge) -> None:
    assert converge(check=True).returncode == 0
    assert converge(check=True, preflight_hardware={"vcpus": 4096}).returncode != 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"preflight_profile": "huge"}, "no sizing profile 'huge'. Profiles are: realtime, batch, training."),
        ({"preflight_accept": ["memroy"]}, "names memroy, which is no check"),
        ({"preflight_hardware": {"gpu_cuont": 1}}, "gpu_cuont"),
    ],
)
def test_wrong_settings_are_one_clear_error(
    converge: Converge, variables: dict[str, Any], message: str
) -> None:
    run = converge(**variables)
    assert run.returncode != 0
    assert message in said(run)


# --- the operator's command ---------------------------------------------------------------------------------


def mayafleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    inventory = str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
    command = [str(Path(sys.executable).with_name("mayafleet")), "preflight", "-i", inventory, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_one_json_document(host: Host, tmp_path: Path) -> None:
    run = mayafleet("--json", "--runs-dir", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    (checks,) = [entry["checks"] for entry in json.loads(run.stdout)["hosts"].values()]
    levels = {check["id"]: check["level"] for check in checks}
    assert levels["reachable"] == levels["system"] == levels["package_lock"] == levels["gpu_count"] == "pass"
    assert levels["driver"] == "not_run"
    (way,) = [check["found"] for check in checks if check["id"] == "round_trip"]
    assert host.interface("eth0").addresses[0] in way


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """An inventory beside the scenario's: a host that does not answer, and no patience with locks."""
    dead = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    path = tmp_path / "more.yml"
    path.write_text(
        json.dumps({"all": {"hosts": {"dead": dead}, "vars": {"preflight_lock_wait_seconds": 0}}})
    )
    return path


def test_an_unreachable_host_has_a_check_and_the_others_are_judged(more: Path, tmp_path: Path) -> None:
    run = mayafleet("--json", "-i", str(more), "--runs-dir", str(tmp_path))
    assert run.returncode == 4, run.stdout + run.stderr
    hosts = json.loads(run.stdout)["hosts"]
    (dead,) = hosts.pop("dead")["checks"]
    assert (dead["id"], dead["level"]) == ("reachable", "fail")
    assert "ansible_port" in dead["mend"]
    assert [host["level"] for host in hosts.values()] == ["warn"]


def test_a_contradictory_bundle_is_a_check_beside_the_others(tmp_path: Path) -> None:
    bundles = PROJECT / "mayafleet" / "data" / "bundles"
    own = tmp_path / "own.yml"
    own.write_text((bundles / "535.yml").read_text().replace('version: "12.8"', 'version: "14.0"'))
    inventory = tmp_path / "bundle.yml"
    hosts = {"lab-frankfurt-1": {"fleet_bundle": str(own)}}  # outranks the lab's for all
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    run = mayafleet("--json", "-i", str(inventory), "--runs-dir", str(tmp_path))
    assert run.returncode == 9, run.stdout + run.stderr
    (host,) = json.loads(run.stdout)["hosts"].values()
    levels = {check["id"]: check["level"] for check in host["checks"]}
    assert (levels["bundle"], levels["package_lock"]) == ("fail", "pass")


def test_the_command_fails_with_a_code_of_its_own(held_lock: None, more: Path, tmp_path: Path) -> None:
    run = mayafleet("lab-frankfurt-1", "-i", str(more), "--runs-dir", str(tmp_path))
    assert run.returncode == 9
    shown = " ".join(run.stdout.split())
    assert "package_lock fail /var/lib/dpkg/lock-frontend is held" in shown
    assert "Wait until it has ended" in shown
