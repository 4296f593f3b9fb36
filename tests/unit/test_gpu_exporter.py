"""The GPU exporter as a process, scraped over HTTP.

NVML is the stand-in of tests/fake_nvml, and `journalctl` a script that prints lines as the real one does;
molecule/gpu_exporter has the real one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_nvml import LIBRARY, Machine, build

ROOT = Path(__file__).resolve().parents[2]
EXPORTER = ROOT / "roles" / "gpu_exporter" / "files" / "gpu_exporter.py"
# The service's environment has nvidia-ml-py.
PYTHON = ROOT / ".venv-inference" / "bin" / "python"
ALL_THAT_A_GPU_TELLS = {
    "DCGM_FI_DEV_GPU_TEMP": 41,
    "DCGM_FI_DEV_SM_CLOCK": 1695,
    "DCGM_FI_DEV_MEM_CLOCK": 6251,
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": 0x40,
    "DCGM_FI_DEV_POWER_USAGE": 58.123,
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": 150,
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 123456789,
    "DCGM_FI_DEV_GPU_UTIL": 37,
    "DCGM_FI_DEV_MEM_COPY_UTIL": 12,
    "DCGM_FI_DEV_FB_USED": 3 * 1024,
    "DCGM_FI_DEV_FB_FREE": 21 * 1024,
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 1,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 2,
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": 3,
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": 4,
    "DCGM_FI_DEV_RETIRED_PENDING": 1,
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 5,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 6,
    "DCGM_FI_DEV_ROW_REMAP_PENDING": 1,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": 1,
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": 8,
    "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": 16,
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 7,
    "maya1_gpu_lost": 0,
}


class Host:
    """A machine with GPUs, its kernel log, and the exporter that watches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = build(folder / "lib")
        self.log = folder / "kernel.json"
        self.log.touch()
        self.sysfs = folder / "sys"
        program = folder / "bin" / "journalctl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\nexec tail -n +1 -f {self.log}\n')
        program.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, *arguments: str) -> Host:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}/metrics"
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKE_NVML": str(self.folder / "state"),
        }
        self._process = subprocess.Popen(
            [PYTHON, EXPORTER, "--listen", address, "--sysfs", self.sysfs, *arguments],
            env=environment,
            start_new_session=True,
        )
        eventually(lambda: self.metrics() is not None)
        return self

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as they are printed."""
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            text = answer.read().decode()
        samples = re.findall(r"^([a-zA-Z_]\w*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
        assert len(samples) == len([line for line in text.splitlines() if not line.startswith("#")])
        return {name: float(value) for name, value in samples}

    def kernel_says(self, text: str, seconds_ago: float = 0) -> None:
        when = str(int((time.time() - seconds_ago) * 1e6))
        with self.log.open("a") as log:
            print(json.dumps({"__REALTIME_TIMESTAMP": when, "MESSAGE": text}), file=log)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "state", {}, {"name": "NVIDIA GeForce RTX 4090"})


def eventually(succeeds: Callable[[], bool]) -> None:
    for _ in range(200):
        try:
            if succeeds():
                return
        except urllib.error.URLError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def of_gpu(metrics: dict[str, float], index: int) -> dict[str, float]:
    return {name.partition("{")[0]: v for name, v in metrics.items() if f'{{gpu="{index}"' in name}


def test_all_that_a_gpu_tells(host: Host, machine: Machine) -> None:
    machine.change(0, throttle=0x40, retired__pending=1, pcie_width=8, pcie_replays=7)
    machine.change(0, ecc__corrected=1, ecc__uncorrected=2, ecc__corrected_ever=3, ecc__uncorrected_ever=4)
    machine.change(0, remapped__corrected=5, remapped__uncorrected=6, remapped__pending=1, remapped__failed=1)
    metrics = host.start().metrics()
    assert of_gpu(metrics, 0) == ALL_THAT_A_GPU_TELLS
    assert metrics["maya1_gpu_nvml_up"] == 1
    assert metrics["maya1_gpu_kernel_log_up"] == 1
    # Labels as dcgm-exporter has them.
    labels = 'gpu="1",UUID="GPU-00000001",pci_bus_id="00000000:3C:00.0",device="nvidia1"'
    assert f'DCGM_FI_DEV_GPU_TEMP{{{labels},modelName="NVIDIA GeForce RTX 4090"}}' in metrics


def test_retired_pages_are_counted_where_a_gpu_has_them(host: Host, machine: Machine) -> None:
    # An older GPU retires pages instead of remapping rows.
    machine.change(0, remapped__corrected=None, retired__single=3, retired__double=0, retired__pending=0)
    told = of_gpu(host.start().metrics(), 0)
    assert told["DCGM_FI_DEV_RETIRED_SBE"] == 3
    assert told["DCGM_FI_DEV_RETIRED_DBE"] == 0
    assert "DCGM_FI_DEV_ROW_REMAP_FAILURE" not in told


def test_what_a_gpu_does_not_tell_is_left_out(host: Host, machine: Machine) -> None:
    machine.change(1, ecc__uncorrected=None, power=None)
    told = of_gpu(host.start().metrics(), 1)
    assert "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL" not in told
    assert "DCGM_FI_DEV_POWER_USAGE" not in told
    assert told["DCGM_FI_DEV_GPU_TEMP"] == 41


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_driver_and_library_that_differ_are_told_and_survived(host: Host, machine: Machine) -> None:
    machine.system["init"] = 18
    machine.write()
    metrics = host.start().metrics()
    assert metrics["maya1_gpu_nvml_up"] == 0
    assert metrics["maya1_gpu_driver_mismatch"] == 1
    assert any(re.match(r'maya1_gpu_nvml_error\{code="18",.*mismatch', name) for name in metrics)
    assert not of_gpu(metrics, 0)
    machine.system["init"] = 0
    machine.write()
    mended = host.metrics()
    assert mended["maya1_gpu_nvml_up"] == 1
    assert mended["maya1_gpu_driver_mismatch"] == 0
    assert of_gpu(mended, 0)


def test_an_upgrade_below_a_running_exporter_is_noticed(host: Host, machine: Machine) -> None:
    version = host.sysfs / "module/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("535.309.01\n")
    named = host.library.rename(host.library.with_name("libnvidia-ml.so.535.309.01"))
    host.library.symlink_to(named.name)
    before = host.start().metrics()
    assert before["maya1_gpu_driver_mismatch"] == 0
    assert before['maya1_gpu_driver_info{module="535.309.01",library="535.309.01"}'] == 1
    named.rename(named.with_name("libnvidia-ml.so.580.178.04"))
    host.library.unlink()
    (host.library.parent / LIBRARY).symlink_to("libnvidia-ml.so.580.178.04")
    after = host.metrics()
    assert after["maya1_gpu_driver_mismatch"] == 1
    assert after['maya1_gpu_driver_info{module="535.309.01",library="580.178.04"}'] == 1
    assert after["maya1_gpu_nvml_up"] == 1  # the exporter itself still has the old library


def test_a_host_without_the_library_says_so(host: Host) -> None:
    host.library.unlink()
    metrics = host.start().metrics()
    assert metrics["maya1_gpu_nvml_up"] == 0
    assert any(name.startswith('maya1_gpu_nvml_error{code="12"') for name in metrics)


def test_a_lost_gpu_leaves_the_others_and_is_named(host: Host, machine: Machine) -> None:
    assert of_gpu(host.start().metrics(), 1)["maya1_gpu_lost"] == 0
    machine.change(1, error=15)
    metrics = host.metrics()
    assert of_gpu(metrics, 1) == {"maya1_gpu_lost": 1}
    assert any("GPU-00000001" in name for name in metrics if name.startswith("maya1_gpu_lost"))
    assert of_gpu(metrics, 0)["DCGM_FI_DEV_GPU_TEMP"] == 41
    machine.change(1, error=None)
    assert of_gpu(host.metrics(), 1)["maya1_gpu_lost"] == 0


def test_nvml_that_fails_midway_is_begun_anew(host: Host, machine: Machine) -> None:
    host.start()
    machine.system["session"] = 1
    machine.write()
    assert host.metrics()["maya1_gpu_nvml_up"] == 0
    assert host.metrics()["maya1_gpu_nvml_up"] == 1
    machine.xid(0, 13)
    assert xids(host.metrics()) == {("0", "13"): 1}


# --- XIDs ---------------------------------------------------------------------------------------------------

FALLEN = "NVRM: Xid (PCI:0000:3c:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def xids(metrics: dict[str, float], name: str = "DCGM_EXP_XID_ERRORS_COUNT") -> dict[tuple[str, str], float]:
    """Counts by GPU and XID."""
    pattern = re.compile(name + r'\{gpu="(\d*)".*xid="(\d+)"')
    return {(m[1], m[2]): value for key, value in metrics.items() if (m := pattern.match(key))}


def test_xids_of_nvml_are_counted_by_gpu_and_number(host: Host, machine: Machine) -> None:
    host.start()
    assert xids(host.metrics()) == {}
    for gpu, number in ((0, 13), (0, 13), (1, 79)):
        machine.xid(gpu, number)
    assert xids(host.metrics()) == {("0", "13"): 2, ("1", "79"): 1}
    assert xids(host.metrics()) == {("0", "13"): 2, ("1", "79"): 1}


def test_xids_of_the_kernel_log_are_counted_also_from_before(host: Host, machine: Machine) -> None:
    host.kernel_says("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.309.01")
    host.kernel_says(FALLEN)
    host.start()
    eventually(lambda: xids(host.metrics()) == {("1", "79"): 1})
    host.kernel_says("NVRM: Xid (PCI:0000:3b:00.0): 31, pid=4242, name=maya1-tts, Ch 00000010")
    eventually(lambda: xids(host.metrics()) == {("0", "31"): 1, ("1", "79"): 1})
    # Only this boot's: what the command line says, since the script does not judge it.
    assert "--dmesg" in (host.folder / "asked").read_text().split()


def test_an_xid_that_both_tell_of_counts_once(host: Host, machine: Machine) -> None:
    host.start()
    machine.xid(1, 79)
    host.kernel_says(FALLEN)
    host.kernel_says("NVRM: Xid (PCI:0000:3b:00): 13, pid=1, name=x")
    eventually(lambda: ("0", "13") in xids(host.metrics()))
    assert xids(host.metrics())["1", "79"] == 1


def test_old_xids_leave_the_window_and_stay_in_the_counter(host: Host, machine: Machine) -> None:
    host.kernel_says(FALLEN, seconds_ago=7200)
    host.kernel_says(FALLEN)
    host.start("--xid-window-seconds", "3600")
    eventually(lambda: xids(host.metrics(), "maya1_gpu_xid_total") == {("1", "79"): 2})
    assert xids(host.metrics()) == {("1", "79"): 1}
    assert any('window_size_in_ms="3600000"' in name for name in host.metrics())


def test_the_xid_of_a_gpu_that_nvml_never_knew_has_its_address(host: Host, machine: Machine) -> None:
    host.kernel_says("NVRM: Xid (PCI:0000:81:00): 79, GPU has fallen off the bus.")
    host.start()
    eventually(lambda: xids(host.metrics()) == {("", "79"): 1})
    assert any('pci_bus_id="00000000:81:00.0"' in name for name in host.metrics())


def test_what_is_no_json_is_passed_over(host: Host, machine: Machine) -> None:
    with host.log.open("a") as log:
        print("-- Boot 0123456789abcdef --", file=log)
    host.kernel_says(FALLEN)
    host.start()
    eventually(lambda: xids(host.metrics()) == {("1", "79"): 1})


# --- serving ------------------------------------------------------------------------------------------------


def test_other_paths_are_not_found(host: Host, machine: Machine) -> None:
    host.start()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(host.url.replace("/metrics", "/"))


def test_the_page_is_what_prometheus_reads(host: Host, machine: Machine) -> None:
    machine.change(0, name='odd "name"')
    text = urllib.request.urlopen(host.start().url).read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    # promtool wants lower case and `_total`; DCGM's names are what they are. What does not parse is an error.
    assert b"error while linting" not in checked.stderr
    assert b"parsing" not in checked.stderr


def test_it_installs_what_the_service_is_locked_to() -> None:
    own = (ROOT / "roles/gpu_exporter/files/requirements.txt").read_text()
    assert "nvidia-ml-py==" in own
    assert own.strip() in (ROOT / "inference/requirements.lock").read_text()
