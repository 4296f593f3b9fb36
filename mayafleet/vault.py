"""The one file of an inventory in which the operator's secrets lie encrypted, by ansible-vault or by SOPS.
And keys in files of their own, which ansible-vault may have encrypted.

Both run as programs that are fed through stdin: no plain text comes to a disk, no secret into an argument.
Ansible reads the file by itself, like any other of group_vars/all.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from mayafleet import files, project
from mayafleet.errors import ExitCode, FleetError

FOLDER = Path("group_vars") / "all"
VAULT_HEADER = b"$ANSIBLE_VAULT;"
# Where Ansible is told to read the password: a file, or a program that prints it.
PASSWORD_VARIABLES = ("ANSIBLE_VAULT_PASSWORD_FILE", "ANSIBLE_VAULT_IDENTITY_LIST")


class Backend(StrEnum):
    """What encrypts."""

    VAULT = "vault"
    SOPS = "sops"


NAMES = {Backend.VAULT: "secrets.yml", Backend.SOPS: "secrets.sops.yml"}


@dataclass(frozen=True)
class SecretFile:
    """The file, which need not exist yet."""

    inventory: Path
    backend: Backend

    @property
    def path(self) -> Path:
        return self.inventory / FOLDER / NAMES[self.backend]

    def is_encrypted(self) -> bool:
        """Whether nothing in it can be read without the key. The names of variables may, with SOPS."""
        if self.backend is Backend.VAULT:
            return is_locked(self.path)
        document = yaml.safe_load(self.path.read_bytes())
        return isinstance(document, dict) and "sops" in document and not _clear(document, "sops")

    def read(self) -> dict[str, Any]:
        """Its variables. Raises FleetError where it cannot be decrypted."""
        if self.backend is Backend.VAULT:
            text = _view(self.path)
        else:
            text = self._run(["sops", "--disable-version-check", "decrypt", str(self.path)])
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError:
            values = None
        if not isinstance(values, dict):
            raise FleetError(
                f"{self.path} holds something else than variables and their values.",
                f"Mend it with `{EDIT[self.backend]} {self.path}`.",
                ExitCode.USAGE,
            )
        return values

    def write(self, values: dict[str, Any]) -> None:
        """Encrypt these variables and put them in the file's place, whole or not at all."""
        if self.backend is Backend.VAULT:
            unlock([self.path], new=True)
            command = ["ansible-vault", "encrypt", "--output", "-"]
        else:
            command = ["sops", "--disable-version-check", "encrypt", "--filename-override", str(self.path)]
        encrypted = self._run(command, yaml.dump(values, Dumper=_Dumper, sort_keys=False))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.path, encrypted.encode(), private=True)

    def _run(self, command: Sequence[str], text: str | None = None) -> str:
        # SOPS looks for .sops.yaml from here upwards.
        return _run(command, self.path, self.backend, self.inventory, text)


EDIT = {Backend.VAULT: "ansible-vault edit", Backend.SOPS: "sops"}
ENCRYPT = {Backend.VAULT: "ansible-vault encrypt", Backend.SOPS: "sops encrypt --in-place"}
HINTS = {
    Backend.VAULT: "Check ANSIBLE_VAULT_PASSWORD_FILE; docs/secrets.md tells the way out of a lost password.",
    Backend.SOPS: "Name your age key in SOPS_AGE_KEY_FILE, and recipients in .sops.yaml beside hosts.yml; "
    "see docs/secrets.md.",
}


def find(inventory: Path) -> SecretFile | None:
    """The inventory's file of secrets. Raises FleetError where there are two."""
    found = [one for one in (SecretFile(inventory, backend) for backend in Backend) if one.path.exists()]
    if len(found) > 1:
        raise FleetError(
            f"{inventory} has both {found[0].path.name} and {found[1].path.name}.",
            "Keep one of them: Ansible would read both.",
            ExitCode.USAGE,
        )
    return found[0] if found else None


def is_locked(path: Path) -> bool:
    """Whether ansible-vault has encrypted this file."""
    return path.is_file() and path.read_bytes().startswith(VAULT_HEADER)


def read(path: Path) -> str:
    """What a file holds; `ansible-vault encrypt` may have encrypted it.

    Raises FleetError where it cannot be decrypted, OSError where it cannot be read at all.
    """
    return _view(path) if is_locked(path) else path.read_text()


def unlock_inventories(paths: Iterable[Path]) -> None:
    """Before something reads these inventories: ask for the password that their secrets need."""
    unlock(SecretFile(one if one.is_dir() else one.parent, Backend.VAULT).path for one in paths)


def unlock(paths: Iterable[Path], new: bool = False) -> None:
    """Ask for the password once, where one is needed and Ansible has not been told where to read it.

    paths: files that may be encrypted. new: one is to be made, so the password is asked for twice.
    """
    if any(os.environ.get(name) for name in PASSWORD_VARIABLES):
        return
    locked = [path for path in paths if is_locked(path)]
    if not (locked or new):
        return
    if not sys.stdin.isatty():
        raise FleetError(
            f"{locked[0] if locked else 'The file of secrets'} needs a password, and nobody is there to ask.",
            "Set ANSIBLE_VAULT_PASSWORD_FILE to a file that holds it, or a program that prints it.",
            ExitCode.USAGE,
        )
    password = getpass.getpass("Vault password: ")
    if not locked and getpass.getpass("Once more: ") != password:
        raise FleetError("The two passwords differ.", "Try again.", ExitCode.USAGE)
    # A file in memory that only this user's processes can open, and that goes with this one.
    memory = os.memfd_create("vault-password", 0)
    os.fchmod(memory, 0o400)
    os.write(memory, password.encode())
    os.environ["ANSIBLE_VAULT_PASSWORD_FILE"] = f"/proc/{os.getpid()}/fd/{memory}"


def _view(path: Path) -> str:
    unlock([path])
    return _run(["ansible-vault", "view", str(path.resolve())], path, Backend.VAULT, path.parent)


def _run(command: Sequence[str], path: Path, backend: Backend, folder: Path, text: str | None = None) -> str:
    """Have a program encrypt this text for a file, or decrypt the file, and return what it prints."""
    environment = os.environ | project.ansible_environment()
    if not shutil.which(command[0], path=environment["PATH"]):
        raise FleetError(
            f"The program {command[0]}, which {path} needs, is not installed.",
            "See docs/secrets.md.",
            ExitCode.USAGE,
        )
    done = subprocess.run(
        command, input=text, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        verb = "encrypted" if text is not None else "decrypted"
        told = " ".join(done.stderr.replace("[ERROR]:", "").split()) or f"{command[0]} says nothing"
        raise FleetError(f"{path} cannot be {verb}: {told}", HINTS[backend], ExitCode.USAGE)
    return done.stdout


def _clear(value: Any, *ignored: str) -> list[str]:
    """Leaves that SOPS has not encrypted."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() if key not in ignored for leaf in _clear(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _clear(inner)]
    return [] if value in (None, "") or str(value).startswith("ENC[") else [str(value)]


class _Dumper(yaml.SafeDumper):
    """Keys in PEM as the blocks that people know."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
