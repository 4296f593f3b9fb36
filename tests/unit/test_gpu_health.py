"""How GPUs are judged, by what nvidia-smi and the kernel's log say; nvidia_smi.xml says what its form is."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_probe
import pytest

from mayafleet import gpu_health
from mayafleet.checks import Check, Level

SMI = Path(__file__).with_name("nvidia_smi.xml").read_text()
BOOT = "b" * 32


def line(xid: int, pci: str = "0000:3b:00", boot: str = BOOT, seconds: int = 0) -> str:
    """A line as `journalctl --output=json` prints it of the kernel."""
    when = int(datetime(2026, 11, 26, 12, 0, seconds, tzinfo=UTC).timestamp() * 1e6)
    return json.dumps(
        {
            "__REALTIME_TIMESTAMP": str(when),
            "_BOOT_ID": boot,
            "_TRANSPORT": "kernel",
            "PRIORITY": "3",
            "MESSAGE": f"NVRM: Xid (PCI:{pci}): {xid}, pid='<unknown>', name=<unknown>, and its details",
        }
    )


def judged(
    smi: str = SMI, log: tuple[str, ...] = (), wanted: int | None = 2, on_bus: int = 2, rc: int = 0
) -> gpu_health.Health:
    probe = {
        "gpus_on_bus": on_bus,
        "smi": {"rc": rc, "stdout": smi, "stderr": ""} if on_bus else None,
        "kernel_log": list(log),
        "boot": BOOT,
    }
    return gpu_health.judge(probe, wanted=wanted, driver="535.309.01")


def check(health: gpu_health.Health, name: str, gpu: int | None = None) -> Check:
    checks = health.host if gpu is None else health.by_gpu[gpu]
    return next(one for one in checks if one.id == name)


# --- a host that is well ------------------------------------------------------------------------------------


def test_gpus_are_read_with_what_they_tell() -> None:
    version, (a10, rtx) = gpu_health.parse_smi(SMI)
    assert version == "535.309.01"
    assert a10 == gpu_health.Gpu(
        index=0, name="NVIDIA A10", uuid="GPU-00000000", pci="0000:3b:00", temperature=45, sm_clock=1695,
        max_sm_clock=1695, slowed_by=[], ecc=True, ecc_corrected=3, ecc_uncorrected=0, remapped_rows=1,
        remap_pending=False, remap_failed=False, retired_pages=None, retire_pending=None, pcie_width=16,
        pcie_width_max=16,
    )  # fmt: skip
    assert (rtx.ecc, rtx.ecc_uncorrected, rtx.remapped_rows) == (None, None, None)


def test_a_host_that_is_well_passes() -> None:
    health = judged()
    assert health.level is Level.PASS
    assert check(health, "memory", 0).found == "corrected 3, uncorrected 0, rows remapped 1"
    assert check(health, "memory", 1).level is Level.NOT_RUN
    assert (
        json.loads(json.dumps(gpu_health.as_document(health)))["gpus"][1]["name"] == "NVIDIA GeForce RTX 4090"
    )


def test_a_host_without_gpus_is_no_failure_unless_it_should_have_some() -> None:
    assert judged(on_bus=0, wanted=0).level is Level.PASS
    lost = judged(on_bus=0, wanted=2)
    assert check(lost, "count").level is Level.FAIL


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "instead", "name", "level", "told"),
    [
        ("hw_slowdown>Not Active", "hw_slowdown>Active", "clocks", Level.WARN, "hardware slowdown"),
        ("hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active", "clocks", Level.WARN, "too hot"),
        ("failure>No", "failure>Yes", "memory", Level.FAIL, "remapping failed"),
        ("row_pending>No", "row_pending>Yes", "memory", Level.WARN, "waits for a reset"),
        ("secded>0", "secded>1", "memory", Level.FAIL, "uncorrected 1"),
        ("current_link_width>16x", "current_link_width>8x", "link", Level.WARN, "x8 of x16"),
    ],
)
def test_a_gpu_that_is_unwell(found: str, instead: str, name: str, level: Level, told: str) -> None:
    assert found in SMI
    one = check(judged(SMI.replace(found, instead, 1)), name, 0)
    assert one.level is level
    assert told in one.found
    assert one.mend


def test_throttle_reasons_are_read_by_their_older_name_too() -> None:
    older = SMI.replace("hw_slowdown>Not Active", "hw_slowdown>Active", 1).replace(
        "event_reason", "throttle_reason"
    )
    assert "hardware slowdown" in check(judged(older), "clocks", 0).found


def test_retired_pages_are_summed() -> None:
    older = SMI.replace("<retired_count>N/A", "<retired_count>2")
    assert "pages retired 4" in check(judged(older), "memory", 0).found


def test_another_driver_than_the_bundles_fails() -> None:
    one = check(judged(SMI.replace("535.309.01", "580.178.04")), "driver")
    assert (one.level, one.found, one.wanted) == (Level.FAIL, "580.178.04", "535.309.01")


@pytest.mark.parametrize(
    ("told", "mend"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", "an upgrade moved the libraries"),
        (
            "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot",
            "reboot it, once",
        ),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "module loaded"),
    ],
)
def test_nvidia_smi_that_fails_is_told_with_the_way_to_mend(told: str, mend: str) -> None:
    one = check(judged(told, rc=1), "nvidia-smi")
    assert one.level is Level.FAIL
    assert told.strip() in one.found
    assert mend in one.mend


def test_output_that_is_no_xml_is_a_failure_not_a_crash() -> None:
    assert check(judged("Segmentation fault"), "nvidia-smi").level is Level.FAIL


@pytest.mark.parametrize(("wanted", "level"), [(3, Level.FAIL), (2, Level.PASS), (None, Level.NOT_RUN)])
def test_gpus_are_counted_against_the_inventory(wanted: int | None, level: Level) -> None:
    assert check(judged(wanted=wanted), "count").level is level


# --- XIDs ---------------------------------------------------------------------------------------------------


def test_xids_belong_to_their_gpu_and_say_what_to_do() -> None:
    health = judged(log=(line(13), line(13, seconds=30), line(79, pci="0000:3c:00.0")))
    crashed, fallen = check(health, "xid 13", 0), check(health, "xid 79", 1)
    assert (crashed.level, fallen.level) == (Level.WARN, Level.FAIL)
    assert crashed.found.startswith("2x, last 2026-11-26 12:00:30 UTC: exception in the graphics engine")
    assert "reboot it, once" in fallen.mend
    assert not [one for one in health.by_gpu[0] if one.id == "xid 79"]


def test_an_xid_that_is_information_does_not_worsen_a_gpu() -> None:
    assert judged(log=(line(43), line(63))).level is Level.PASS


def test_the_xid_of_a_gpu_that_no_longer_answers_is_the_hosts() -> None:
    one = check(judged(log=(line(79, pci="0000:81:00"),)), "xid 79")
    assert "0000:81:00" in one.found


@pytest.mark.parametrize(("earlier", "hardware"), [(0, False), (1, False), (2, True)])
def test_79_that_comes_back_after_two_reboots_is_the_hardware(earlier: int, hardware: bool) -> None:
    log = tuple(line(79, boot=f"{number}" * 32) for number in range(earlier))
    one = check(judged(log=(*log, line(79))), "xid 79", 0)
    assert ("replace the GPU" in one.mend) is hardware


def test_xids_of_earlier_boots_alone_are_over() -> None:
    assert judged(log=(line(79, boot="0" * 32),)).level is Level.PASS


def test_an_unknown_xid_is_to_be_looked_up() -> None:
    one = check(judged(log=(line(999),)), "xid 999", 0)
    assert one.level is Level.WARN
    assert "https://docs.nvidia.com" in one.mend


def test_lines_that_are_none_are_passed_over() -> None:
    old = json.loads(line(8))
    old["MESSAGE"] = "NVRM: Xid (0000:3b:00): 8, Channel 00000001"
    noise = ("-- Boot --", "[]", '{"MESSAGE": null}', json.dumps({"MESSAGE": [78, 86]}))
    assert [xid.number for xid in gpu_health.parse_kernel_log((*noise, json.dumps(old)))] == [8]


def test_the_table_is_whole() -> None:
    table = gpu_health.table()
    numbers = [row["xid"] for row in table["xids"]]
    assert numbers == sorted(set(numbers))
    for row in table["xids"]:
        assert row["severity"] in {"info", "warning", "critical"}
        assert row["action"] in table["actions"]
        assert (row["action"] == "ignore") <= (row["severity"] == "info"), row


# --- the probe ----------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the PATH, for scripts that play nvidia-smi and journalctl."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setitem(gpu_probe.ENVIRONMENT, "PATH", f"{folder}:/usr/bin:/bin")
    return folder


def play(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def sysfs(folder: Path, gpus: int) -> Path:
    for number in range(gpus):
        device = folder / f"sys/bus/pci/devices/0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    return folder / "sys"


def test_the_probe_asks_nvidia_smi_only_where_a_gpu_is(tmp_path: Path, programs: Path) -> None:
    play(programs, "nvidia-smi", f"touch {tmp_path}/asked; echo gone >&2; exit 15")
    (tmp_path / "log").write_text(f"{line(79)}\n{{}}\n")
    play(programs, "journalctl", f'cat {tmp_path}/log; echo "$@" > {tmp_path}/arguments')
    without = gpu_probe.probe(tmp_path / "absent", 30)
    assert (without["gpus_on_bus"], without["smi"]) == (0, None)
    assert not (tmp_path / "asked").exists()
    found: dict[str, Any] = gpu_probe.probe(sysfs(tmp_path, 2), 30)
    assert found["gpus_on_bus"] == 2
    assert found["smi"] == {"rc": 15, "stdout": "", "stderr": "gone\n"}
    assert found["kernel_log"] == [line(79)]
    assert "--since=-30d" in (tmp_path / "arguments").read_text()
    assert re.fullmatch(r"[0-9a-f]{32}", found["boot"])


def test_a_host_without_the_program_says_so(tmp_path: Path, programs: Path) -> None:
    play(programs, "journalctl", "exit 1")
    found = gpu_probe.probe(sysfs(tmp_path, 1), 30)
    assert found["smi"]["rc"] == 127
    told = check(gpu_health.judge(found, wanted=1), "nvidia-smi").found
    assert told == "nvidia-smi: No such file or directory"
