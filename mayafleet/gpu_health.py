"""Whether the GPUs of a host are well: a judgement of what nvidia-smi and the kernel's log say there.

Pure functions. Module gpu_probe brings what the programs print; data/xid.yml says what an XID means.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mayafleet.checks import Check, Level, worst

TABLE = Path(__file__).parent / "data" / "xid.yml"
# An XID that is still there after so many reboots is the hardware's.
REBOOTS = 2
XID_LINE = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]+):([0-9a-fA-F]+):([0-9a-fA-F]+)[.0-9]*\): (\d+)(?:, )?(.*)"
)
# Reasons that slow a GPU down for its protection; the others are its everyday business.
BRAKES = {
    "hw_slowdown": "hardware slowdown",
    "hw_thermal_slowdown": "too hot (hardware)",
    "hw_power_brake_slowdown": "power brake",
    "sw_thermal_slowdown": "too hot (driver)",
}


@dataclass(frozen=True)
class Xid:
    """One error report of the driver."""

    number: int
    pci: str
    when: datetime
    boot: str
    text: str


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi tells of it; None for what it does not tell. Celsius, MHz, lanes."""

    index: int
    name: str
    uuid: str
    pci: str
    temperature: int | None = None
    sm_clock: int | None = None
    max_sm_clock: int | None = None
    slowed_by: list[str] = field(default_factory=list)
    ecc: bool | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages: int | None = None
    retire_pending: bool | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None


@dataclass(frozen=True)
class Health:
    """What is to be said of a host: its GPUs, and checks of the host and of each GPU by index."""

    gpus: list[Gpu]
    host: list[Check]
    by_gpu: dict[int, list[Check]]

    @property
    def checks(self) -> list[Check]:
        return [*self.host, *(check for checks in self.by_gpu.values() for check in checks)]

    @property
    def level(self) -> Level:
        return worst(self.checks)


@cache
def table() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(TABLE.read_text())
    return content


def known_xid(number: int) -> dict[str, str]:
    """Meaning, severity and action of an XID; one that is not in the table is a warning to look up."""
    for row in table()["xids"]:
        if row["xid"] == number:
            return {**row, "action_text": table()["actions"][row["action"]]}
    return {
        "meaning": "not in the table",
        "severity": "warning",
        "action": "look_up",
        "action_text": f"Look it up at {table()['source']['url']}.",
    }


# --- reading ------------------------------------------------------------------------------------------------


def parse_smi(document: str) -> tuple[str, list[Gpu]]:
    """The driver's version and the GPUs, of `nvidia-smi -q -x`. Raises ValueError where it is no XML."""
    try:
        root = ET.fromstring(document)
    except ET.ParseError as error:
        raise ValueError(f"nvidia-smi printed no XML: {error}") from None
    gpus = [_gpu(index, element) for index, element in enumerate(root.findall("gpu"))]
    return root.findtext("driver_version", "").strip(), gpus


def _gpu(index: int, gpu: ET.Element) -> Gpu:
    link = "pci/pci_gpu_link_info/link_widths"
    volatile = gpu.find("ecc_errors/volatile")
    retired = [_number(gpu, f"retired_pages/{kind}/retired_count") for kind in RETIRED]
    rows = [_number(gpu, f"remapped_rows/remapped_row_{kind}") for kind in ("corr", "unc")]
    # Drivers before 550 say throttle where later ones say event.
    reasons = [*gpu.findall("clocks_event_reasons/*"), *gpu.findall("clocks_throttle_reasons/*")]
    active = [re.sub(r"^clocks_\w+?_reason_", "", one.tag) for one in reasons if _text(one) == "Active"]
    return Gpu(
        index=index,
        name=gpu.findtext("product_name", "").strip(),
        uuid=gpu.findtext("uuid", "").strip(),
        pci=_pci(gpu.findtext("pci/pci_bus_id", gpu.get("id", ""))),
        temperature=_number(gpu, "temperature/gpu_temp"),
        sm_clock=_number(gpu, "clocks/sm_clock"),
        max_sm_clock=_number(gpu, "max_clocks/sm_clock"),
        slowed_by=[meaning for reason, meaning in BRAKES.items() if reason in active],
        ecc=_flag(gpu, "ecc_mode/current_ecc", "Enabled", "Disabled"),
        ecc_corrected=_errors(volatile, "_correctable"),
        ecc_uncorrected=_errors(volatile, "_uncorrectable"),
        remapped_rows=_sum(rows),
        remap_pending=_flag(gpu, "remapped_rows/remapped_row_pending", "Yes", "No"),
        remap_failed=_flag(gpu, "remapped_rows/remapped_row_failure", "Yes", "No"),
        retired_pages=_sum(retired),
        retire_pending=_flag(gpu, "retired_pages/pending_retirement", "Yes", "No"),
        pcie_width=_number(gpu, f"{link}/current_link_width"),
        pcie_width_max=_number(gpu, f"{link}/max_link_width"),
    )


RETIRED = ("multiple_single_bit_retirement", "double_bit_retirement")


def parse_kernel_log(lines: Iterable[str]) -> list[Xid]:
    """The XIDs of lines of `journalctl --output=json`, oldest first. What is no such line is passed over."""
    xids = []
    for line in lines:
        try:
            entry = json.loads(line)
            found = XID_LINE.search(str(entry["MESSAGE"]))
            when = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, UTC)
        except (ValueError, KeyError, TypeError):
            continue
        if found:
            pci = _pci(":".join(found.groups()[:3]))
            xids.append(Xid(int(found[4]), pci, when, str(entry.get("_BOOT_ID", "")), found[5].strip()))
    return sorted(xids, key=lambda xid: xid.when)


def _text(element: ET.Element) -> str:
    return (element.text or "").strip()


def _number(gpu: ET.Element, path: str) -> int | None:
    """The whole number that a value begins with: `45 C`, `16x`; None for N/A."""
    found = re.match(r"-?\d+", gpu.findtext(path, "").strip())
    return int(found[0]) if found else None


def _flag(gpu: ET.Element, path: str, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(gpu.findtext(path, "").strip())


def _errors(counters: ET.Element | None, kind: str) -> int | None:
    """The sum of a kind of ECC errors over the memories of a GPU."""
    found = (
        [_number(counters, one.tag) for one in counters if kind in one.tag] if counters is not None else []
    )
    return _sum(found)


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _pci(address: str) -> str:
    """0000:3b:00 of 00000000:3B:00.0, which is how the kernel's log and nvidia-smi can be compared."""
    parts = address.partition(".")[0].split(":")
    if len(parts) != 3:
        return address
    domain, bus, device = (int(part, 16) for part in parts)
    return f"{domain:04x}:{bus:02x}:{device:02x}"


# --- judging ------------------------------------------------------------------------------------------------


def judge(probe: Mapping[str, Any], *, wanted: int | None = None, driver: str | None = None) -> Health:
    """How the GPUs of a host are. probe is what module gpu_probe returns; driver is the bundle's version."""
    xids = parse_kernel_log(probe["kernel_log"])
    on_bus, smi = probe["gpus_on_bus"], probe["smi"]
    gpus: list[Gpu] = []
    if not on_bus:
        answers = Check("nvidia-smi", Level.NOT_RUN, "no NVIDIA GPU on the PCI bus")
    else:
        try:
            if smi["rc"] != 0:
                raise ValueError((smi["stdout"] + smi["stderr"]).strip() or f"exit status {smi['rc']}")
            version, gpus = parse_smi(smi["stdout"])
            answers = _driver(version, driver)
        except ValueError as error:
            answers = Check("nvidia-smi", Level.FAIL, str(error), "an answer", _mend_smi(str(error)))
    by_gpu = {gpu.index: _of_gpu(gpu, [x for x in xids if x.pci == gpu.pci], probe["boot"]) for gpu in gpus}
    known = {gpu.pci for gpu in gpus}
    orphans = [xid for xid in xids if xid.pci not in known]
    host = [answers, _count(on_bus, len(gpus), wanted), *_xids(orphans, probe["boot"], tell_pci=True)]
    return Health(gpus, host, by_gpu)


def _driver(version: str, wanted: str | None) -> Check:
    if wanted and version != wanted:
        return Check(
            "driver",
            Level.FAIL,
            version or "no version",
            wanted,
            "Run `site.yml`, which installs it and reboots.",
        )
    return Check("driver", Level.PASS, version)


def _mend_smi(told: str) -> str:
    if "version mismatch" in told:
        return "Drain the host and reboot it: an upgrade moved the libraries below the loaded module."
    if "lost" in told or "Unable to determine the device handle" in told:
        return table()["actions"]["reboot"]  # type: ignore[no-any-return]
    return "Read `journalctl -k`; is the driver installed, and its module loaded?"


def _count(on_bus: int, answering: int, wanted: int | None) -> Check:
    told = f"{on_bus} on the PCI bus, {answering} answer"
    if wanted is None:
        return Check("count", Level.NOT_RUN, f"{told}; the inventory gives no number")
    if min(on_bus, answering) < wanted:
        return Check(
            "count",
            Level.FAIL,
            told,
            f"{wanted}, as hardware.gpu_count says",
            "Read `journalctl -k`; drain the host, reboot it, power it off and on; then ask the provider.",
        )
    return Check("count", Level.PASS, told)


def _of_gpu(gpu: Gpu, xids: Sequence[Xid], boot: str) -> list[Check]:
    checks = [_clocks(gpu), _memory(gpu), _link(gpu), *_xids(xids, boot)]
    return [check for check in checks if check]


def _clocks(gpu: Gpu) -> Check:
    told = f"{gpu.temperature} C, {gpu.sm_clock} of {gpu.max_sm_clock} MHz"
    if gpu.slowed_by:
        return Check(
            "clocks",
            Level.WARN,
            f"{told}; slowed down: {', '.join(gpu.slowed_by)}",
            "no slow-down by heat or hardware",
            "Look at fans, air and power supply, or ask the provider.",
        )
    return Check("clocks", Level.PASS, told)


def _memory(gpu: Gpu) -> Check:
    """Errors of the GPU's memory, the gravest first."""
    told = ", ".join(
        f"{name} {value}"
        for name, value in {
            "corrected": gpu.ecc_corrected,
            "uncorrected": gpu.ecc_uncorrected,
            "rows remapped": gpu.remapped_rows,
            "pages retired": gpu.retired_pages,
        }.items()
        if value is not None
    )
    if gpu.remap_failed:
        return Check(
            "memory", Level.FAIL, f"remapping failed; {told}", "none", table()["actions"]["hardware"]
        )
    if gpu.ecc_uncorrected:
        return Check("memory", Level.FAIL, told, "no uncorrected error", table()["actions"]["reset_gpu"])
    if gpu.remap_pending or gpu.retire_pending:
        return Check(
            "memory",
            Level.WARN,
            f"a repair waits for a reset; {told}",
            "none",
            table()["actions"]["reset_gpu"],
        )
    if not told:
        return Check("memory", Level.NOT_RUN, "the GPU counts no memory errors")
    return Check("memory", Level.PASS, told)


def _link(gpu: Gpu) -> Check:
    told = f"PCIe x{gpu.pcie_width} of x{gpu.pcie_width_max}"
    if gpu.pcie_width is None or gpu.pcie_width_max is None:
        return Check("link", Level.NOT_RUN, "the GPU does not tell")
    if gpu.pcie_width < gpu.pcie_width_max:
        return Check("link", Level.WARN, told, "all lanes", "Have the provider reseat the GPU.")
    return Check("link", Level.PASS, told)


def _xids(xids: Sequence[Xid], boot: str, tell_pci: bool = False) -> list[Check]:
    """A check for each XID of this boot, with what earlier boots say of it."""
    boots: dict[tuple[str, int], set[str]] = defaultdict(set)
    now: dict[tuple[str, int], list[Xid]] = defaultdict(list)
    for xid in xids:
        boots[xid.pci, xid.number].add(xid.boot)
        if xid.boot == boot:
            now[xid.pci, xid.number].append(xid)
    return [
        _xid(seen, len(boots[key]) - 1, tell_pci) for key, seen in sorted(now.items(), key=lambda one: one[0])
    ]


def _xid(seen: Sequence[Xid], reboots: int, tell_pci: bool) -> Check:
    """The same XID of one GPU in this boot, and after how many reboots it has come back."""
    last, row = seen[-1], known_xid(seen[-1].number)
    where = f" of {last.pci}" if tell_pci else ""
    told = f"{len(seen)}x{where}, last {last.when:%Y-%m-%d %H:%M:%S} UTC: {row['meaning']}"
    levels = {"info": Level.PASS, "warning": Level.WARN, "critical": Level.FAIL}
    level, mend = levels[row["severity"]], row["action_text"]
    if level is Level.FAIL and reboots >= REBOOTS:
        told += f"; it came back after {reboots} reboots"
        mend = table()["actions"]["hardware"]
    return Check(f"xid {last.number}", level, told, "" if level is Level.PASS else "none", mend)


def as_document(health: Health) -> dict[str, Any]:
    """A host's health as plain data, for JSON."""
    return {
        "level": health.level,
        "checks": [asdict(check) for check in health.host],
        "gpus": [
            {**asdict(gpu), "checks": [asdict(check) for check in health.by_gpu[gpu.index]]}
            for gpu in health.gpus
        ],
    }
