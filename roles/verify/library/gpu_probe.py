#!/usr/bin/python
"""Ansible module: what a host says of its GPUs, unjudged. It reads, and changes nothing.

It needs Python 3.10 and its standard library alone. nvidia-smi is asked only where a GPU is on the PCI bus:
as root it makes device nodes even where there is none.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: gpu_probe
short_description: What a host says of its GPUs
description:
  - The PCI bus, nvidia-smi, and the XIDs of the kernel's log, also of earlier boots.
  - Changes nothing, in check mode or not.
options:
  days:
    type: int
    default: 30
    description: How far back the kernel's log is read.
  sysfs:
    type: str
    default: /sys
    description: Folder to read instead of /sys, for tests.
author: [maya1-fleet]
"""
EXAMPLES = """
- name: Probe the GPUs
  gpu_probe:
  register: __verify_gpus
"""
RETURN = """
probe:
  description: gpus_on_bus, smi (rc, stdout, stderr), kernel_log (lines of JSON), boot (id of this boot).
  returned: always
  type: dict
"""

NVIDIA = "0x10de"
GPU_CLASSES = ("0x030000", "0x030200")
# A storm of XIDs says no more in more lines.
LOG_LINES = 2000


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "days": {"type": "int", "default": 30},
            "sysfs": {"type": "str", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    found = probe(Path(module.params["sysfs"]), module.params["days"])
    module.exit_json(changed=False, probe=found)


def probe(sysfs: Path, days: int) -> dict[str, Any]:
    on_bus = gpus_on_bus(sysfs)
    return {
        "gpus_on_bus": on_bus,
        "smi": run("nvidia-smi", "-q", "-x") if on_bus else None,
        "kernel_log": xid_lines(days),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""),
    }


def gpus_on_bus(sysfs: Path) -> int:
    devices = (sysfs / "bus/pci/devices").glob("*")
    return sum(text(one / "vendor") == NVIDIA and text(one / "class") in GPU_CLASSES for one in devices)


def xid_lines(days: int) -> list[str]:
    """The kernel's messages that name an XID, as journalctl's JSON."""
    # By transport, since --dmesg would be this boot's alone. Its own --grep needs a library that it may lack.
    log = run("journalctl", "_TRANSPORT=kernel", f"--since=-{days}d", "--output=json", "--quiet")
    return [line for line in log["stdout"].splitlines() if "NVRM: Xid" in line][-LOG_LINES:]


def text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def run(*command: str) -> dict[str, Any]:
    """Exit status and output of a program; 127 where there is none, 124 where it does not end."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
            env=ENVIRONMENT,
        )
    except OSError as error:
        return {"rc": 127, "stdout": "", "stderr": f"{command[0]}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"rc": 124, "stdout": "", "stderr": f"{command[0]} did not answer within 60 s"}
    return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


ENVIRONMENT = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


if __name__ == "__main__":
    main()
