"""Metrics of NVIDIA GPUs for Prometheus, read through NVML: for hosts where dcgm-exporter does not run.

What means the same as a metric of dcgm-exporter has its name, unit and labels, so that rules and dashboards
serve both; the rest begins with maya1_gpu_. A metric that a GPU cannot tell is left out. When NVML fails, or
a GPU is lost, the answer says so and goes on; each scrape tries anew.

XIDs, the driver's error reports, come from two places: NVML's events, and the kernel's log, which also holds
those from before this program began and those of a GPU that no longer answers. One that both tell of counts
once.

Needs Python 3.10, nvidia-ml-py, and for the kernel's log `journalctl`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pynvml
from pynvml import NVMLError

Labels = dict[str, str]

MISMATCH = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
MIB = 1024**2
# How long to wait before the kernel's log is opened again, in seconds.
LOG_RETRY_SECONDS = 30

KERNEL_LOG = ("journalctl", "--dmesg", "--follow", "--lines=all", "--output=json")
XID_LINE = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]+):([0-9a-fA-F]+):([0-9a-fA-F]+)[.0-9]*\): (\d+)")


# --- metrics of a GPU ---------------------------------------------------------------------------------------


def temperature(gpu: Any) -> float:
    return int(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU))


def throttle_reasons(gpu: Any) -> float:
    return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(gpu))


def clock(kind: int) -> Callable[[Any], float]:
    return lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, kind)


def watts(read: Callable[[Any], float]) -> Callable[[Any], float]:
    return lambda gpu: read(gpu) / 1000


def busy(part: str) -> Callable[[Any], float]:
    return lambda gpu: getattr(pynvml.nvmlDeviceGetUtilizationRates(gpu), part)


def memory(part: str) -> Callable[[Any], float]:
    return lambda gpu: getattr(pynvml.nvmlDeviceGetMemoryInfo(gpu), part) // MIB


def ecc(kind: int, since: int) -> Callable[[Any], float]:
    return lambda gpu: pynvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since)


def rows(position: int) -> Callable[[Any], float]:
    return lambda gpu: pynvml.nvmlDeviceGetRemappedRows(gpu)[position]


def retired(cause: int) -> Callable[[Any], float]:
    return lambda gpu: len(pynvml.nvmlDeviceGetRetiredPages(gpu, cause))


CORRECTED, UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
SINCE_LOADED, EVER = pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC
SINGLE_BIT = pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS
DOUBLE_BIT = pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR

# Name, type, meaning, and how to read it of a GPU's handle.
METRICS: tuple[tuple[str, str, str, Callable[[Any], float]], ...] = (
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", temperature),
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", clock(pynvml.NVML_CLOCK_SM)),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock frequency (in MHz).", clock(pynvml.NVML_CLOCK_MEM)),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "gauge", "Why clocks are not higher, a bit mask.", throttle_reasons),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", watts(pynvml.nvmlDeviceGetPowerUsage)),
    (
        "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
        "gauge",
        "Power limit in force (in W).",
        watts(pynvml.nvmlDeviceGetEnforcedPowerLimit),
    ),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "counter",
        "Energy consumed since the driver was loaded (in mJ).",
        pynvml.nvmlDeviceGetTotalEnergyConsumption,
    ),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", busy("gpu")),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", busy("memory")),
    ("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", memory("used")),
    ("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).", memory("free")),
    (
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "counter",
        "Single-bit volatile ECC errors.",
        ecc(CORRECTED, SINCE_LOADED),
    ),
    (
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "counter",
        "Double-bit volatile ECC errors.",
        ecc(UNCORRECTED, SINCE_LOADED),
    ),
    ("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "counter", "Single-bit persistent ECC errors.", ecc(CORRECTED, EVER)),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "counter", "Double-bit persistent ECC errors.", ecc(UNCORRECTED, EVER)),
    ("DCGM_FI_DEV_RETIRED_SBE", "counter", "Pages retired due to single-bit errors.", retired(SINGLE_BIT)),
    ("DCGM_FI_DEV_RETIRED_DBE", "counter", "Pages retired due to double-bit errors.", retired(DOUBLE_BIT)),
    (
        "DCGM_FI_DEV_RETIRED_PENDING",
        "gauge",
        "Whether pages wait for retirement.",
        pynvml.nvmlDeviceGetRetiredPagesPendingStatus,
    ),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", "Rows remapped for correctable errors.", rows(0)),
    (
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "counter",
        "Rows remapped for uncorrectable errors.",
        rows(1),
    ),
    ("DCGM_FI_DEV_ROW_REMAP_PENDING", "gauge", "Whether rows wait for a reset to be remapped.", rows(2)),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", "Whether remapping of rows has failed.", rows(3)),
    ("DCGM_FI_DEV_PCIE_LINK_WIDTH", "gauge", "PCIe lanes in use.", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    (
        "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH",
        "gauge",
        "PCIe lanes that GPU and slot have.",
        pynvml.nvmlDeviceGetMaxPcieLinkWidth,
    ),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "PCIe retries.", pynvml.nvmlDeviceGetPcieReplayCounter),
)


# --- XIDs ---------------------------------------------------------------------------------------------------


class Xids:
    """XIDs by GPU and number, as each source has told of them."""

    def __init__(self, window_seconds: float) -> None:
        self.window = window_seconds
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, int, str], int] = defaultdict(int)
        self._recent: dict[tuple[str, int, str], deque[float]] = defaultdict(deque)

    def add(self, source: str, pci: str, number: int, when: float) -> None:
        with self._lock:
            self._totals[pci, number, source] += 1
            self._recent[pci, number, source].append(when)

    def forget(self, source: str) -> None:
        """Drop what a source has told, before it tells everything again."""
        with self._lock:
            for key in [key for key in self._totals if key[2] == source]:
                del self._totals[key], self._recent[key]

    def counts(self, now: float) -> dict[tuple[str, int], tuple[int, int]]:
        """How often each was seen: at all, and within the window. The source that saw more of them counts."""
        counts: dict[tuple[str, int], tuple[int, int]] = {}
        with self._lock:
            for (pci, number, source), total in self._totals.items():
                recent = self._recent[pci, number, source]
                while recent and recent[0] < now - self.window:
                    recent.popleft()
                seen, within = counts.get((pci, number), (0, 0))
                counts[pci, number] = (max(seen, total), max(within, len(recent)))
        return counts


def follow_kernel_log(xids: Xids, state: dict[str, int]) -> None:
    """Count the XIDs of this boot's kernel log, as it goes on. Does not return."""
    while True:
        xids.forget("kernel")
        try:
            with subprocess.Popen(KERNEL_LOG, stdout=subprocess.PIPE, text=True, errors="replace") as log:
                state["kernel"] = 1
                for line in log.stdout or ():
                    count_xid(line, xids)
        except OSError as error:
            print(f"The kernel's log cannot be read: {error}", file=sys.stderr)
        state["kernel"] = 0
        time.sleep(LOG_RETRY_SECONDS)


def count_xid(line: str, xids: Xids) -> None:
    """Count the XID of one line of journalctl's JSON, if it tells of one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return
    found = XID_LINE.search(str(entry.get("MESSAGE")))
    if found:
        pci = pci_address(*(int(part, 16) for part in found.groups()[:3]))
        xids.add("kernel", pci, int(found[4]), int(entry["__REALTIME_TIMESTAMP"]) / 1e6)


def pci_address(domain: int, bus: int, device: int) -> str:
    return f"{domain:08X}:{bus:02X}:{device:02X}.0"


# --- NVML ---------------------------------------------------------------------------------------------------


class Gpus:
    """What NVML tells of the GPUs. The session is kept between scrapes, and begun anew when it has failed."""

    def __init__(self, xids: Xids, sysfs: Path) -> None:
        self.xids = xids
        self.sysfs = sysfs
        self._known: dict[int, Labels] = {}
        self._events: Any = None
        self._open = False
        self._registered: set[int] = set()

    def read(self, page: Page) -> None:
        error = self._read(page)
        page.add("maya1_gpu_nvml_up", "gauge", "Whether NVML answers.", 0 if error else 1)
        if error:
            reason = {"code": str(error.value), "reason": str(error)}
            page.add("maya1_gpu_nvml_error", "gauge", "Why NVML does not answer.", 1, reason)
        module, library = self._versions()
        differ = bool(error and error.value == MISMATCH) or bool(module and library and module != library)
        page.add(
            "maya1_gpu_driver_mismatch",
            "gauge",
            "Whether the loaded module and the library on disk differ.",
            int(differ),
        )
        versions = {"module": module, "library": library}
        page.add("maya1_gpu_driver_info", "gauge", "Versions of the driver.", 1, versions)

    def labels_at(self, pci: str) -> Labels:
        """The labels of the GPU at a PCI address, also of one that is lost or was never seen."""
        for labels in self._known.values():
            if labels.get("pci_bus_id") == pci:
                return labels
        return {"gpu": "", "pci_bus_id": pci}

    def _read(self, page: Page) -> NVMLError | None:
        """Read every GPU. The error, if NVML as a whole has failed."""
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
                self._events, self._registered = pynvml.nvmlEventSetCreate(), set()
            for index in range(pynvml.nvmlDeviceGetCount()):
                self._read_gpu(index, page)
            self._drain_events()
        except NVMLError as error:
            self._close()
            return error
        return None

    def _read_gpu(self, index: int, page: Page) -> None:
        lost = 0
        try:
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            labels = self._identity(index, gpu)
            self._watch(index, gpu)
            for name, kind, meaning, read in METRICS:
                value = answer(read, gpu)
                if value is not None:
                    page.add(name, kind, meaning, value, labels)
        except NVMLError as error:
            if error.value not in LOST:
                raise
            lost = 1
        labels = self._known.get(index, {"gpu": str(index)})
        page.add("maya1_gpu_lost", "gauge", "Whether the GPU no longer answers.", lost, labels)

    def _identity(self, index: int, gpu: Any) -> Labels:
        """Labels as dcgm-exporter gives them."""
        pci = pynvml.nvmlDeviceGetPciInfo(gpu)
        self._known[index] = {
            "gpu": str(index),
            "UUID": pynvml.nvmlDeviceGetUUID(gpu),
            "pci_bus_id": pci_address(pci.domain, pci.bus, pci.device),
            "device": f"nvidia{answer(pynvml.nvmlDeviceGetMinorNumber, gpu) or 0}",
            "modelName": pynvml.nvmlDeviceGetName(gpu),
        }
        return self._known[index]

    def _watch(self, index: int, gpu: Any) -> None:
        """Ask for the GPU's XID events, once."""
        if index not in self._registered:
            self._registered.add(index)
            answer(
                lambda gpu: pynvml.nvmlDeviceRegisterEvents(
                    gpu, pynvml.nvmlEventTypeXidCriticalError, self._events
                ),
                gpu,
            )

    def _drain_events(self) -> None:
        """Count the events since the last scrape; NVML keeps them until they are asked for."""
        while True:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    raise
                return
            pci = pynvml.nvmlDeviceGetPciInfo(event.device)
            self.xids.add("nvml", pci_address(pci.domain, pci.bus, pci.device), event.eventData, time.time())

    def _close(self) -> None:
        if self._open:
            self._open = False
            answer(lambda _: pynvml.nvmlShutdown(), None)

    def _versions(self) -> tuple[str, str]:
        """Of the loaded module, and of the library that a program would load now; empty where unknown.

        This program keeps the library that it began with, so NVML itself does not notice an upgrade below it.
        """
        try:
            module = (self.sysfs / "module/nvidia/version").read_text().strip()
        except OSError:
            module = ""
        mapped = re.search(r"(/\S*/)libnvidia-ml\.so", Path("/proc/self/maps").read_text())
        file = os.path.realpath(f"{mapped[1]}libnvidia-ml.so.1") if mapped else ""
        version = re.search(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$", file)
        return module, version[1] if version else ""


def answer(read: Callable[[Any], Any], gpu: Any) -> Any:
    """What NVML answers; None for what GPU or driver do not tell."""
    try:
        return read(gpu)
    except NVMLError:
        return None


# --- the page -----------------------------------------------------------------------------------------------


class Page:
    """Metrics in Prometheus' text format, each with its type and meaning once."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, meaning: str, value: float, labels: Labels | None = None) -> None:
        family = self._families.setdefault(name, [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"])
        pairs = ",".join(
            f"{label}={json.dumps(text, ensure_ascii=False)}" for label, text in (labels or {}).items()
        )
        family.append(f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}")

    def __str__(self) -> str:
        return "".join(f"{line}\n" for family in self._families.values() for line in family)


class Exporter:
    def __init__(self, window_seconds: float, sysfs: Path) -> None:
        self.xids = Xids(window_seconds)
        self.gpus = Gpus(self.xids, sysfs)
        self.sources = {"kernel": 0}
        self._lock = threading.Lock()
        threading.Thread(target=follow_kernel_log, args=(self.xids, self.sources), daemon=True).start()

    def page(self) -> str:
        page = Page()
        with self._lock:
            self.gpus.read(page)
            for name, value, labels in self._xid_metrics():
                kind = "counter" if name.endswith("_total") else "gauge"
                page.add(name, kind, XID_MEANINGS[name], value, labels)
        page.add(
            "maya1_gpu_kernel_log_up", "gauge", "Whether the kernel's log is read.", self.sources["kernel"]
        )
        return str(page)

    def _xid_metrics(self) -> Iterator[tuple[str, int, Labels]]:
        """A gauge over the window as dcgm-exporter has it, and a counter since the host was booted."""
        window = {"window_size_in_ms": str(int(self.xids.window * 1000))}
        for (pci, number), (total, recent) in sorted(self.xids.counts(time.time()).items()):
            labels = {**self.gpus.labels_at(pci), "xid": str(number)}
            yield "DCGM_EXP_XID_ERRORS_COUNT", recent, {**labels, **window}
            yield "maya1_gpu_xid_total", total, labels


XID_MEANINGS = {
    "DCGM_EXP_XID_ERRORS_COUNT": "Count of XID Errors within the time window.",
    "maya1_gpu_xid_total": "XID errors since the host was booted.",
}


def handler(exporter: Exporter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = exporter.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Scrapes are no news."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description="Metrics of NVIDIA GPUs for Prometheus, read through NVML.")
    parser.add_argument("--listen", default="127.0.0.1:9400", metavar="ADDRESS:PORT")
    parser.add_argument("--xid-window-seconds", type=float, default=3600, metavar="SECONDS")
    parser.add_argument("--sysfs", type=Path, default=Path("/sys"), help="read instead of /sys, by tests")
    given = parser.parse_args()
    address, _, port = given.listen.rpartition(":")
    exporter = Exporter(given.xid_window_seconds, given.sysfs)
    ThreadingHTTPServer((address, int(port)), handler(exporter)).serve_forever()


if __name__ == "__main__":
    main()
