#!/usr/bin/python
"""Ansible module: options of file systems that are mounted, now and after a boot.

A path that is no file system of its own is left alone, unless it is to become one in memory: at the next
boot, since what lies there now would vanish from those who use it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: mount_options
short_description: Options of file systems that are mounted, now and after a boot
description:
  - Adds options to mounted file systems and to their lines in /etc/fstab; one without a line gets one.
options:
  options:
    type: dict
    required: true
    description: Options to add, a list for each path.
  tmpfs:
    type: dict
    default: {}
    description: Paths that become file systems in memory at the next boot, and their sizes.
author: [maya1-fleet]
"""
EXAMPLES = """
- name: Run nothing from shared memory
  mount_options:
    options: { /dev/shm: [nosuid, nodev, noexec] }
"""
RETURN = """
changes:
  description: What was changed, or would be, a sentence each.
  returned: always
  type: list
"""

FSTAB = Path("/etc/fstab")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "tmpfs": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    mounted = parse_mounts(Path("/proc/self/mounts").read_text())
    before = text = FSTAB.read_text() if FSTAB.exists() else ""
    changes = []
    for path, size in module.params["tmpfs"].items():
        if path not in mounted:
            text = with_tmpfs(text, path, size, module.params["options"].get(path, []))
    for path, wanted in module.params["options"].items():
        if path not in mounted:
            continue
        text = with_options(text, path, mounted[path][1], wanted)
        if missing := [option for option in wanted if option not in mounted[path][0]]:
            changes.append(f"{path} mounted {','.join(missing)}")
            if not module.check_mode:
                subprocess.run(["mount", "--options", ",".join(["remount", *wanted]), path], check=True)
    if text != before:
        changes.append(f"{FSTAB} written")
        if not module.check_mode:
            FSTAB.write_text(text)
    module.exit_json(changed=bool(changes), changes=changes)


def with_tmpfs(text: str, path: str, size: str, options: Iterable[str]) -> str:
    """The text of /etc/fstab with a file system in memory at a path that it has no line for."""
    if any(line.split()[1:2] == [path] for line in text.splitlines() if not line.lstrip().startswith("#")):
        return text
    fields = ["tmpfs", path, "tmpfs", ",".join(["mode=1777", f"size={size}", *options]), "0", "0"]
    return text + "\t".join(fields) + "\n"


def parse_mounts(text: str) -> dict[str, tuple[list[str], str]]:
    """Options and type of each mounted file system by path, out of /proc/self/mounts."""
    fields = (line.split() for line in text.splitlines())
    return {path: (options.split(","), kind) for _, path, kind, options, *_ in fields}


def with_options(text: str, path: str, kind: str, wanted: Iterable[str]) -> str:
    """The text of /etc/fstab with the options on the line of a path.

    One without a line gets one where its type is tmpfs: others belong to units, which know their device.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fields = line.split()
        if len(fields) >= 4 and not line.lstrip().startswith("#") and fields[1] == path:
            present = fields[3].split(",")
            missing = [option for option in wanted if option not in present]
            if missing:
                lines[number] = "\t".join([*fields[:3], ",".join([*present, *missing]), *fields[4:]])
            break
    else:
        if kind == "tmpfs":
            lines.append("\t".join(["tmpfs", path, "tmpfs", ",".join(["defaults", *wanted]), "0", "0"]))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
