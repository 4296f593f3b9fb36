#!/usr/bin/python
"""Ansible module: contents, owners and highest modes of many files in one go.

The mode of a file that is there already is a ceiling: what it allows beyond is taken away, nothing is added.
Symbolic links are left alone.
"""

from __future__ import annotations

import glob
import grp
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: host_files
short_description: Contents, owners and highest modes of many files in one go
description:
  - Writes files, takes away what others allow beyond a mode, and sets owners. Links are left alone.
options:
  files:
    type: list
    elements: dict
    required: true
    description:
      - "C(path): a file; a pattern where nothing is written, ** for all files below a folder."
      - "C(content): what is in it, or C(lines): a text for each rule, written where the rule is in C(rules)."
      - "C(values): settings of a file that others wrote, one a line; C(separator): between name and value, by
        default a blank."
      - "C(mode): the most that it may allow, 0644 where not named; C(owner), C(group): root where not named,
        unless C(keep_owner)."
      - "C(exclude): paths left alone, with what lies in them."
      - "C(create): an empty file is made where there is none; C(absent): the file is removed."
  rules:
    type: list
    elements: str
    default: []
    description: Rules whose lines are written.
author: [maya1-fleet]
"""
EXAMPLES = """
- name: Keep the settings of sshd to root
  host_files:
    files:
      - { path: "/etc/ssh/sshd_config.d/*", mode: "0600" }
"""
RETURN = """
changes:
  description: What was changed, or would be, a sentence each.
  returned: always
  type: list
"""

HEADER = "# Written by Ansible, role hardening.\n"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True},
            "rules": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    rules, check = module.params["rules"], module.check_mode
    changes = [change for wanted in module.params["files"] for change in apply(wanted, rules, check)]
    module.exit_json(changed=bool(changes), changes=changes)


def apply(wanted: dict[str, Any], rules: Collection[str] = (), check: bool = False) -> Iterator[str]:
    """Bring the files of one entry to what is wanted; what was done about each."""
    path = Path(wanted["path"])
    content = text(wanted, rules)
    if wanted.get("absent"):
        yield from remove(path, check)
    elif content is not None and (not path.exists() or path.read_text() != content):
        yield f"{path} written"
        if not check:
            write(path, content, wanted)
    elif wanted.get("create") and not path.exists():
        yield f"{path} made"
        if not check:
            write(path, "", wanted)
    else:
        excluded = tuple(wanted.get("exclude", ()))
        for name in sorted(glob.glob(wanted["path"], recursive=True)):
            if not any(name == entry or name.startswith(entry + "/") for entry in excluded):
                yield from mend(Path(name), wanted, check)


def text(wanted: dict[str, Any], rules: Collection[str]) -> str | None:
    """What the file is to hold; None where its contents are not ours."""
    if "lines" in wanted:
        chosen = [line for rule, line in wanted["lines"].items() if rule in rules]
        return HEADER + "".join(f"{line}\n" for line in chosen)
    if "values" in wanted:
        path = Path(wanted["path"])
        return with_values(
            path.read_text() if path.exists() else "", wanted["values"], wanted.get("separator", " ")
        )
    content: str | None = wanted.get("content")
    return content


def with_values(text: str, values: dict[str, Any], separator: str) -> str:
    """The text with each setting once: in the place of its first line, or at the end."""
    lines = text.splitlines()
    for name, value in values.items():
        setting = re.compile(rf"\s*{re.escape(name)}(\s|=|$)")
        places = [number for number, line in enumerate(lines) if setting.match(line)] or [len(lines)]
        lines[places[0] : places[0] + 1] = [f"{name}{separator}{value}"]
        lines = [line for number, line in enumerate(lines) if number not in places[1:]]
    return "".join(f"{line}\n" for line in lines)


def write(path: Path, content: str, wanted: dict[str, Any]) -> None:
    """Replace the file in one step, so that nobody reads half of it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".maya1-")
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        os.fchown(descriptor, *ids(wanted))
        os.fchmod(descriptor, mode_of(wanted))
    os.replace(name, path)


def remove(path: Path, check: bool) -> Iterator[str]:
    if path.exists():
        yield f"{path} removed"
        if not check:
            path.unlink()


def mend(path: Path, wanted: dict[str, Any], check: bool) -> Iterator[str]:
    """Mode and owner of one file, where they are not right."""
    try:
        found = path.lstat()
    except FileNotFoundError:  # a log that was rotated away meanwhile
        return
    folder_of_many = stat.S_ISDIR(found.st_mode) and "**" in wanted["path"]
    if stat.S_ISLNK(found.st_mode) or folder_of_many:
        return
    before = stat.S_IMODE(found.st_mode)
    mode = before & mode_of(wanted)
    owner = (found.st_uid, found.st_gid) if wanted.get("keep_owner") else ids(wanted)
    if mode == before and owner == (found.st_uid, found.st_gid):
        return
    yield f"{path} {before:04o} {found.st_uid}:{found.st_gid} -> {mode:04o} {owner[0]}:{owner[1]}"
    if not check:
        os.chown(path, *owner)
        path.chmod(mode)


def mode_of(wanted: dict[str, Any]) -> int:
    return int(wanted.get("mode", "0644"), 8)


def ids(wanted: dict[str, Any]) -> tuple[int, int]:
    """User and group id of the owner. Raises KeyError where the host knows no such name."""
    return (
        pwd.getpwnam(wanted.get("owner", "root")).pw_uid,
        grp.getgrnam(wanted.get("group", "root")).gr_gid,
    )


if __name__ == "__main__":
    main()
