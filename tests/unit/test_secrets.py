"""`mayafleet secrets`, with the real ansible-vault and SOPS with age; Ansible reads what they make."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pexpect
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mayafleet import certs, cli, project, secrets, tokens, vault
from mayafleet import inventory as inventories
from mayafleet.checks import Check, Level
from mayafleet.errors import ExitCode, FleetError
from mayafleet.vault import Backend, SecretFile

PASSWORD = "correct horse battery staple"
SITE = {
    "inference_jwks_file": "{{ inventory_dir }}/files/jwt/jwks.json",
    "fleet_jwt_key_file": "{{ inventory_dir }}/files/jwt/private.pem",
    "tls_authority_dir": "{{ inventory_dir }}/files/authority",
    "fleet_jwt_issuer": "fleet",
    "fleet_jwt_audience": "tts",
}
MADE = ("fleet_jwt_key", "redis_password", "grafana_admin_password", "tls_authority_key")


@dataclass(frozen=True)
class Fleet:
    """An inventory with one host, and the secrets that `init` made in it."""

    folder: Path
    backend: Backend

    @property
    def file(self) -> SecretFile:
        return SecretFile(self.folder, self.backend)

    @property
    def public_keys(self) -> list[dict[str, Any]]:
        keys: list[dict[str, Any]] = json.loads((self.folder / "files/jwt/jwks.json").read_text())["keys"]
        return keys

    def call(self, *arguments: str) -> int:
        return mayafleet("secrets", *arguments, "-i", str(self.folder))


def mayafleet(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mayafleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def make_inventory(folder: Path) -> Path:
    (folder / "group_vars" / "all").mkdir(parents=True)
    (folder / "group_vars" / "all" / "site.yml").write_text(json.dumps(SITE))
    (folder / "hosts.yml").write_text("all: {children: {gpu: {hosts: {fra-1: }}}}\n")
    return folder


@pytest.fixture(scope="module", params=list(Backend))
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    keys = tmp_path_factory.mktemp("keys")
    folder = make_inventory(tmp_path_factory.mktemp("fleet") / "inventory")
    with pytest.MonkeyPatch.context() as patch:
        if request.param is Backend.VAULT:
            (keys / "password").write_text(PASSWORD)
            (keys / "password").chmod(0o600)
            patch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(keys / "password"))
        else:
            subprocess.run(["age-keygen", "-o", keys / "age.txt"], check=True, capture_output=True)
            recipient = (keys / "age.txt").read_text().split("public key: ")[1].splitlines()[0]
            rules = {"creation_rules": [{"path_regex": r"\.sops\.yml$", "age": recipient}]}
            (folder / ".sops.yaml").write_text(yaml.safe_dump(rules))
            patch.setenv("SOPS_AGE_KEY_FILE", str(keys / "age.txt"))
        fleet = Fleet(folder, request.param)
        assert fleet.call("init", "--backend", fleet.backend) == ExitCode.OK
        yield fleet


# What has nothing to do with how the file is encrypted.
once = pytest.mark.parametrize("fleet", [Backend.VAULT], indirect=True)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said where the password is."""
    for name in vault.PASSWORD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_ansible_reads_what_init_made_and_nobody_else(fleet: Fleet) -> None:
    made = inventories.variables(inventories.load(fleet.folder), "fra-1", MADE)
    assert all(made.values())
    raw = fleet.file.path.read_text()
    assert not any(line in raw for value in made.values() for line in value.splitlines() if "---" not in line)
    assert stat.S_IMODE(fleet.file.path.stat().st_mode) == 0o600
    assert len(made["redis_password"]) == 64
    kid = tokens.public_jwk(tokens.parse_key(made["fleet_jwt_key"].encode(), "made"))["kid"]
    assert [key["kid"] for key in fleet.public_keys] == [kid]


def test_init_again_leaves_everything_as_it_is(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    before = fleet.file.path.read_bytes()
    assert fleet.call("init") == ExitCode.OK
    assert f"{fleet.file.path} lacks nothing." in capsys.readouterr().out
    assert fleet.file.path.read_bytes() == before
    other = next(one for one in Backend if one is not fleet.backend)
    assert fleet.call("init", "--backend", other) == ExitCode.USAGE
    assert f"keeps its secrets in {fleet.file.path.name} already" in capsys.readouterr().err


def test_check_is_content_and_has_a_document(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert fleet.call("check", "--json") == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 0
    assert {check["level"] for check in document["checks"]} == {"pass"}
    assert {"file", "jwt", "redis", "grafana", "authority", "jwt: public keys"} <= {
        check["id"] for check in document["checks"]
    }


def test_rotating_replaces_one_secret_and_says_what_to_run(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fleet.file.read()
    assert fleet.call("rotate", "redis") == ExitCode.OK
    assert f"-i {fleet.folder} --tags redis,inference" in capsys.readouterr().out
    after = fleet.file.read()
    assert {name for name in after if after[name] != before.get(name)} == {"redis_password"}
    assert fleet.call("rotate", "tls") == ExitCode.OK
    moment = time.strptime(fleet.file.read()["tls_keys_since"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(moment) - time.mktime(time.gmtime())) < 60


@once
def test_tokens_of_the_old_key_are_good_until_the_overlap_ends(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    def issue() -> str:
        capsys.readouterr()
        assert mayafleet("jwt", "issue", "--subject", "me", "-i", str(fleet.folder)) == ExitCode.OK
        return capsys.readouterr().out.strip()

    (first,) = (key["kid"] for key in fleet.public_keys)
    old_token = issue()
    assert fleet.call("rotate", "jwt", "--overlap", "2d") == ExitCode.OK
    new, old = fleet.public_keys
    assert (old["kid"], "exp" in new) == (first, False)
    assert abs(old["exp"] - time.time() - 2 * 86400) < 60
    for token, key in ((old_token, old), (issue(), new)):
        jwt.decode(token, jwt.PyJWK(key), algorithms=["EdDSA"], audience="tts", issuer="fleet")
    assert fleet.call("rotate", "jwt", "--overlap", "0s") == ExitCode.OK
    (only,) = fleet.public_keys
    assert only["kid"] not in (first, new["kid"])
    assert "exp" not in only
    assert "are refused" in capsys.readouterr().out
    assert fleet.call("rotate", "jwt", "--overlap", "soon") == ExitCode.USAGE


@once
def test_a_new_authority_comes_before_the_one_that_clients_trust(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fleet.folder / "files" / "authority" / "ca.pem"
    kept = []
    for _ in range(3):
        assert fleet.call("rotate", "authority") == ExitCode.OK
        kept.append([one.serial_number for one in x509.load_pem_x509_certificates(path.read_bytes())])
    (first,), (second, old), (_, older) = kept
    assert (old, older) == (first, second)
    assert f"{path} holds the new authority" in capsys.readouterr().out
    signed_by = x509.load_pem_x509_certificates(path.read_bytes())[0].public_key()
    key = load_pem_private_key(fleet.file.read()["tls_authority_key"].encode(), None)
    assert signed_by == key.public_key()


@once
def test_a_lost_file_is_made_anew(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the public halves that are left, as after a lost password."""
    mine = Fleet(make_inventory(tmp_path / "inventory"), Backend.VAULT)
    shutil.copytree(fleet.folder / "files", mine.folder / "files")
    old = x509.load_pem_x509_certificate((mine.folder / "files/authority/ca.pem").read_bytes())
    assert mine.call("init") == ExitCode.OK
    assert "holds a new authority, and the old one" in capsys.readouterr().out
    new, kept = x509.load_pem_x509_certificates((mine.folder / "files/authority/ca.pem").read_bytes())
    assert (kept, new.public_key() == old.public_key()) == (old, False)
    assert mine.call("check") == ExitCode.OK


@once
def test_keys_that_lay_in_files_are_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fleet: Fleet
) -> None:
    folder = make_inventory(tmp_path / "inventory")
    private, _ = tokens.create_key_pair(folder / "files" / "jwt")
    mine = Fleet(folder, Backend.VAULT)
    assert mine.call("init") == ExitCode.OK
    assert mine.file.read()["fleet_jwt_key"] == private.read_text()
    assert len(mine.public_keys) == 1
    assert f"{private} is in the clear" in capsys.readouterr().out
    assert mine.call("check") == ExitCode.VERIFY_FAILED
    private.unlink()
    assert mine.call("check") == ExitCode.OK


def test_a_password_is_asked_for_where_ansible_knows_none(tmp_path: Path, locked: None) -> None:
    folder = make_inventory(tmp_path / "inventory")
    main = [sys.executable, "-c", "from mayafleet.cli import main; main()", "secrets"]

    def talk(arguments: list[str], *answers: str) -> str:
        child = pexpect.spawn(
            main[0], [*main[1:], *arguments, "-i", str(folder)], timeout=60, encoding="utf-8"
        )
        for prompt, answer in zip(("Vault password: ", "Once more: "), answers, strict=False):
            child.expect(prompt)
            child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        told: str = child.before or ""
        return f"{child.exitstatus} {told}"

    assert talk(["init"], PASSWORD, "another").startswith("2 ")
    assert not list(folder.rglob("secrets.yml"))
    assert talk(["init"], PASSWORD, PASSWORD).startswith("0 ")
    assert talk(["check"], PASSWORD).startswith("0 ")
    wrong = talk(["check"], "wrong")
    assert wrong.startswith("2 ")
    assert "Traceback" not in wrong


def test_without_a_password_and_a_terminal_there_is_a_way_out(
    tmp_path: Path, locked: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_inventory(tmp_path / "inventory")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115  closed with the process
    assert mayafleet("secrets", "init", "-i", str(folder)) == ExitCode.USAGE
    assert "Set ANSIBLE_VAULT_PASSWORD_FILE" in capsys.readouterr().err


# --- what `check` finds, without an Ansible -----------------------------------------------------------------


GOOD = "6f1c0d0f7e2b4a99b3c5d8e1f2a40617"


@pytest.fixture
def inventory(tmp_path: Path, locked: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_inventory(tmp_path / "inventory")
    monkeypatch.delenv("SOPS_AGE_KEY_FILE", raising=False)
    return folder


def found(folder: Path, **known: Any) -> dict[str, Check]:
    names = [*secrets.SETTINGS, secrets.DATES, *(secret.variable for secret in secrets.SECRETS)]
    given = dict.fromkeys(names) | {"tls_source": "acme", "fleet_jwt_key_file": "elsewhere.pem"} | known
    return {check.id: check for check in secrets.judge(folder, given)}


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (None, Level.WARN),
        ("admin", Level.FAIL),
        ("0" * 40, Level.FAIL),
        ("change-me-please-now-1234", Level.FAIL),
        (GOOD, Level.PASS),
    ],
)
def test_weak_passwords(inventory: Path, value: str | None, level: Level) -> None:
    check = found(inventory, grafana_admin_password=value)["grafana"]
    assert check.level is level
    assert value is None or value not in str(check)


def test_the_key_of_the_clients_authority(inventory: Path) -> None:
    folder = inventory / "files" / "clients"

    def level() -> Level | None:
        check = found(inventory, gateway_client_authority_dir=str(folder)).get("clients: authority's key")
        return check.level if check else None

    assert level() is None  # kept elsewhere
    certs.Authority.create(folder)
    assert level() is Level.WARN
    (folder / "ca.key").chmod(0o640)
    assert level() is Level.FAIL
    (folder / "ca.key").write_bytes(vault.VAULT_HEADER)
    assert level() is Level.PASS


def test_age(inventory: Path) -> None:
    path = SecretFile(inventory, Backend.VAULT).path
    path.write_bytes(vault.VAULT_HEADER)
    for day, level in (("2020-01-01", Level.WARN), ("2999-01-01", Level.PASS)):
        known = {"redis_password": GOOD, secrets.DATES: {"redis": day}}
        assert found(inventory, **known)["redis"].level is level


def test_keys_that_are_none(inventory: Path) -> None:
    key = tokens.pem_of(Ed25519PrivateKey.generate())
    assert found(inventory, fleet_jwt_key="no key")["jwt"].level is Level.FAIL
    assert (
        found(inventory, tls_source="own_authority", tls_authority_key=key)["authority"].level is Level.FAIL
    )
    published = found(inventory, fleet_jwt_key=key, inference_jwks_file=str(inventory / "absent.json"))
    assert published["jwt: public keys"].level is Level.FAIL
    tokens.publish(inventory / "jwks.json", Ed25519PrivateKey.generate())
    foreign = found(inventory, fleet_jwt_key=key, inference_jwks_file=str(inventory / "jwks.json"))
    assert foreign["jwt: public keys"].level is Level.FAIL


@pytest.mark.parametrize("backend", list(Backend))
def test_a_file_that_is_not_encrypted(inventory: Path, backend: Backend) -> None:
    path = SecretFile(inventory, backend).path
    path.write_text(f"redis_password: {GOOD}\n")
    checks = found(inventory, redis_password=GOOD)
    assert checks["file"].level is Level.FAIL
    assert checks["redis_password: in the clear"].found == str(path.relative_to(inventory))


def test_a_file_that_others_can_write(inventory: Path) -> None:
    path = SecretFile(inventory, Backend.VAULT).path
    path.write_bytes(vault.VAULT_HEADER)
    for mode, level in ((0o644, Level.PASS), (0o620, Level.FAIL)):
        path.chmod(mode)
        assert found(inventory)["file"].level is level


@pytest.mark.parametrize(
    ("content", "clear"),
    [
        ("alertmanager_webhook_token: xoxb-12", True),
        ("tls_acme_dns_credentials: {HETZNER_API_KEY: abc}", True),
        ("nested: {fleet_jwt_key: PEM}", True),
        ("alertmanager_webhook_token: '{{ hooked }}'", False),
        ("alertmanager_webhook_token: ''", False),
        ("alertmanager_webhook_token: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n", False),
    ],
)
def test_values_in_the_clear(inventory: Path, content: str, clear: bool) -> None:
    (inventory / "group_vars" / "gpu.yml").write_text(content)
    assert bool(list(secrets.in_the_clear(inventory))) is clear


@pytest.mark.parametrize(("mode", "level"), [(0o600, Level.PASS), (0o640, Level.FAIL), (0o700, Level.PASS)])
def test_the_files_that_open_it(
    inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, level: Level
) -> None:
    SecretFile(inventory, Backend.VAULT).path.write_bytes(vault.VAULT_HEADER)
    for folder, wanted in ((tmp_path, level), (inventory, Level.FAIL)):
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(mode)
        monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
        assert found(inventory)["ANSIBLE_VAULT_PASSWORD_FILE"].level is wanted


def test_two_files_are_one_too_many(inventory: Path) -> None:
    for backend in Backend:
        SecretFile(inventory, backend).path.write_text("")
    with pytest.raises(FleetError, match=r"has both secrets\.yml and secrets\.sops\.yml"):
        vault.find(inventory)


def test_the_example_has_no_secret_in_the_clear() -> None:
    for name in ("example", "lab"):
        assert not list(secrets.in_the_clear(project.root() / "inventories" / name))
