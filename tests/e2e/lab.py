"""A lab for the tests, driven as an operator drives it: by the `mayafleet` command and a client outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import requests

from mayafleet.secrets import SECRET_VARIABLES
from mayafleet.vault import Backend, SecretFile

PROJECT = Path(__file__).resolve().parents[2]
NAME = "maya1-test"
FIRST, SECOND = "lab-frankfurt-1", "lab-dubai-1"
SENTENCE = "The weather in the city will be warm and sunny."


@dataclass(frozen=True)
class Run:
    """One call of `mayafleet`: its exit code, what it printed, and its result.json if it ran a playbook."""

    code: int
    output: str
    result: dict[str, Any]

    def counts(self, host: str) -> dict[str, int]:
        counts: dict[str, int] = self.result["hosts"][host]
        return counts


class Lab:
    """Two hosts, their addresses, and ways to act on them."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "inventory"
        self.state = folder / "state"
        self.runs = folder / "runs"
        shutil.copytree(
            PROJECT / "inventories" / "lab", self.inventory, ignore=shutil.ignore_patterns("lab.yml")
        )
        self.secrets: dict[str, Any] = {}
        password = folder / "vault-password"
        password.write_text("a password that the tests alone know")
        password.chmod(0o600)
        self.environment = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password)}
        self.options = ("--name", NAME, "--inventory", str(self.inventory), "--state", str(self.state))

    # --- the operator's side ---

    def mayafleet(self, *arguments: str) -> Run:
        done = subprocess.run(
            [sys.executable, "-c", "from mayafleet.cli import main; main()", *arguments],
            cwd=PROJECT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        kept = re.search(r"kept in (\S+)", output)
        return Run(
            done.returncode, output, json.loads(Path(kept[1], "result.json").read_text()) if kept else {}
        )

    def provision(self, *arguments: str) -> Run:
        return self.mayafleet(
            "provision", "-i", str(self.inventory), "--runs-dir", str(self.runs), *arguments
        )

    def say(self, text: str, path: Path, *arguments: str) -> Run:
        return self.mayafleet(
            "say", text, "-i", str(self.inventory), "--host", FIRST, "-o", str(path), *arguments
        )

    def plant_secrets(self) -> None:
        """Have all secrets that there can be, encrypted, before the first run."""
        made = self.mayafleet("secrets", "init", "-i", str(self.inventory))
        assert made.code == 0, made.output
        audit_key = token_hex(32)
        (self.inventory / "files").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            file = SecretFile(self.inventory, Backend.VAULT)
            given = {
                "alertmanager_webhook_url": "http://127.0.0.1:9/alerts",
                "alertmanager_webhook_token": token_hex(32),
                "tls_acme_dns_credentials": {"HETZNER_API_KEY": token_hex(32)},
                "inference_audit_hash_key_file": "{{ inventory_dir }}/files/audit_key",
            }
            file.write(file.read() | given)
            self.secrets = {name: file.read()[name] for name in SECRET_VARIABLES} | {
                "audit_hash_key": audit_key
            }
            encrypt = [str(Path(sys.executable).parent / "ansible-vault"), "encrypt", "--output"]
            key_file = self.inventory / "files" / "audit_key"
            subprocess.run(
                [*encrypt, str(key_file)], input=audit_key, text=True, capture_output=True, check=True
            )

    # --- the machine's side ---

    def on(self, host: str, script: str, check: bool = True) -> str:
        """Run a script as root on a host, past SSH and the firewall."""
        done = subprocess.run(
            ["docker", "exec", f"{NAME}-{host}", "sh", "-c", script],
            capture_output=True,
            text=True,
            errors="replace",  # a journal holds bytes of all kinds
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"on {host}: {script!r} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def restart(self, host: str) -> None:
        subprocess.run(["docker", "restart", f"{NAME}-{host}"], capture_output=True, check=True)

    def address(self, host: str, family: int = 4) -> str:
        field = {4: ".IPAddress", 6: ".GlobalIPv6Address"}[family]
        template = "{{range .NetworkSettings.Networks}}{{" + field + "}}{{end}}"
        inspect = ["docker", "inspect", "--format", template, f"{NAME}-{host}"]
        return subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.strip()

    # --- a client's side ---

    @property
    def authority(self) -> Path:
        return self.state / "authority" / "ca.pem"

    @property
    def url(self) -> str:
        return f"https://{self.address(FIRST)}"

    @property
    def signing_key(self) -> str:
        return (self.state / "jwt" / "private.pem").read_text()

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


class Client:
    """A polite caller: on 429 from the gateway's rate limit it waits as told and asks again."""

    def __init__(self, lab: Lab, token: str | None) -> None:
        self.lab = lab
        self.session = requests.Session()
        self.session.verify = str(lab.authority)
        # requests would prefer a bundle that the environment names.
        self.session.trust_env = False
        if token:
            self.session.headers["Authorization"] = f"Bearer {token}"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        for _ in range(20):
            answer = self.session.request(method, self.lab.url + path, timeout=120, **options)
            if answer.status_code != 429:
                return answer
            time.sleep(float(answer.headers["Retry-After"]))
        raise AssertionError("the gateway refused 20 times in a row")

    def speak(self, text: str = SENTENCE, **options: Any) -> requests.Response:
        body = {"model": "tts-1", "input": text, "voice": "joe", "response_format": "wav", **options}
        return self.request("POST", "/v1/audio/speech", json=body)


def eventually(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait for a state. The limit only keeps a broken test from hanging."""
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (requests.RequestException, AssertionError, subprocess.SubprocessError):
            pass
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {seconds:.0f} s: {what}")
        time.sleep(0.5)
