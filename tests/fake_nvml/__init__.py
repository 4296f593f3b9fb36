"""A stand-in for NVIDIA's management library (NVML), built from nvml.c, which says what it plays and how."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"

# A GPU in good health, every field that the library knows.
HEALTHY: Mapping[str, object] = {
    "name": "NVIDIA A10",
    "temperature": 41,
    "clock.sm": 1695,
    "clock.memory": 6251,
    "power": 58123,
    "power_limit": 150000,
    "energy": 123456789,
    "busy": 37,
    "memory_busy": 12,
    "memory_total": 24 * 1024**3,
    "memory_used": 3 * 1024**3,
    "throttle": 0,
    "ecc": 1,
    "ecc.corrected": 0,
    "ecc.uncorrected": 0,
    "ecc.corrected_ever": 0,
    "ecc.uncorrected_ever": 0,
    "remapped.corrected": 0,
    "remapped.uncorrected": 0,
    "remapped.pending": 0,
    "remapped.failed": 0,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_generation": 4,
    "pcie_replays": 0,
}


def build(folder: Path) -> Path:
    """Compile the library into a folder, for LD_LIBRARY_PATH. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            "gcc",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            folder / LIBRARY,
            SOURCE,
        ],
        check=True,
    )
    return folder / LIBRARY


class Machine:
    """What the library answers, in the file that FAKE_NVML names: a test may change it at any time."""

    def __init__(self, state: Path, *gpus: Mapping[str, object], driver: str = "535.309.01") -> None:
        self.state = state
        self.system: dict[str, object] = {"init": 0, "driver": driver, "count": len(gpus)}
        self.gpus = [
            {
                "uuid": f"GPU-0000000{index}",
                "minor": index,
                "pci": f"00000000:{0x3B + index:02X}:00.0",
                **HEALTHY,
                **gpu,
            }
            for index, gpu in enumerate(gpus)
        ]
        self.events: list[tuple[int, int]] = []
        self.write()

    def change(self, gpu: int, **fields: object) -> None:
        """Fields of one GPU; None takes one away, two underscores stand for a dot."""
        for name, value in fields.items():
            key = name.replace("__", ".")
            self.gpus[gpu].pop(key, None)
            if value is not None:
                self.gpus[gpu][key] = value
        self.write()

    def xid(self, gpu: int, number: int) -> None:
        """Have the library deliver an XID event, once."""
        self.events.append((gpu, number))
        self.write()

    def write(self) -> None:
        lines = [f"{name}={value}" for name, value in self.system.items()]
        lines += [f"{n}.{name}={value}" for n, gpu in enumerate(self.gpus) for name, value in gpu.items()]
        lines += [f"event={gpu} {number}" for gpu, number in self.events]
        # In one step: the library may read at any time.
        partial = self.state.with_suffix(".partial")
        partial.write_text("\n".join(lines) + "\n")
        partial.replace(self.state)
