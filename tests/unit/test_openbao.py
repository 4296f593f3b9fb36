"""Secrets in OpenBao, which speaks HashiCorp Vault's API: the real server, asked as docs/secrets.md says."""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mayafleet import inventory as inventories
from mayafleet import project
from mayafleet.errors import FleetError

ROOT = secrets.token_hex(16)
PASSWORD = secrets.token_hex(16)
POLICY = 'path "secret/data/maya1/*" { capabilities = ["read"] }'


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server in memory, with the secret engine `secret` that such a server comes with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(project.root() / ".venv" / "bin" / "bao")
    home = tmp_path_factory.mktemp("bao")
    server = subprocess.Popen(
        [program, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"],
        env={"BAO_DEV_ROOT_TOKEN_ID": ROOT, "HOME": str(home), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                if requests.get(f"{address}/v1/sys/health", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                pass
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def ask(address: str, method: str, path: str, **body: Any) -> dict[str, Any]:
    answer = requests.request(
        method, f"{address}/v1/{path}", json=body, headers={"X-Vault-Token": ROOT}, timeout=30
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


@pytest.fixture
def role(bao: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An AppRole that may read the fleet's secrets alone, in the variables that docs/secrets.md names."""
    methods = ask(bao, "GET", "sys/auth")
    if "approle/" not in methods["data"]:
        ask(bao, "POST", "sys/auth/approle", type="approle")
    ask(bao, "PUT", "sys/policies/acl/maya1-read", policy=POLICY)
    ask(bao, "POST", "auth/approle/role/maya1", token_policies=["maya1-read"])
    monkeypatch.setenv("VAULT_ADDR", bao)
    monkeypatch.setenv("ANSIBLE_HASHI_VAULT_AUTH_METHOD", "approle")
    monkeypatch.setenv(
        "ANSIBLE_HASHI_VAULT_ROLE_ID", ask(bao, "GET", "auth/approle/role/maya1/role-id")["data"]["role_id"]
    )
    monkeypatch.setenv(
        "ANSIBLE_HASHI_VAULT_SECRET_ID",
        ask(bao, "POST", "auth/approle/role/maya1/secret-id")["data"]["secret_id"],
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """One host, and the variables of the manual."""
    manual = (project.root() / "docs" / "secrets.md").read_text()
    (snippet,) = (
        block for block in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL) if "vault_kv2_get" in block
    )
    folder = tmp_path / "inventory"
    (folder / "group_vars" / "all").mkdir(parents=True)
    (folder / "hosts.yml").write_text("all: {hosts: {fra-1: }}\n")
    (folder / "group_vars" / "all" / "openbao.yml").write_text(snippet)
    return folder


def test_variables_come_from_the_server_and_follow_it(bao: str, role: None, inventory: Path) -> None:
    for password in (PASSWORD, secrets.token_hex(16)):
        ask(bao, "POST", "secret/data/maya1/redis", data={"password": password})
        ask(bao, "POST", "secret/data/maya1/jwt", data={"key": "-----BEGIN PRIVATE KEY-----\nabc\n"})
        known = inventories.variables(
            inventories.load(inventory), "fra-1", ("redis_password", "fleet_jwt_key")
        )
        assert known["redis_password"] == password
        assert known["fleet_jwt_key"].splitlines()[1] == "abc"


def test_what_the_role_may_not_read_is_a_sentence(
    bao: str, role: None, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_HASHI_VAULT_SECRET_ID", "wrong")
    with pytest.raises(FleetError, match="variables of host fra-1 do not resolve"):
        inventories.variables(inventories.load(inventory), "fra-1", ("redis_password",))
