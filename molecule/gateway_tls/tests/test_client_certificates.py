"""Clients that prove by a certificate who they are, and others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Converge, said
from cryptography import x509
from testinfra.host import Host

from mayafleet import certs
from mayafleet.certs import Authority

Ask = Callable[..., requests.Response]
CLOSED = ("/v1/models", "/v1/audio/speech/ws", "/", "/openapi.json")
OPEN = ("/livez", "/readyz")


@pytest.fixture
def ask(address: str, lab_state: Path) -> Ask:
    """Send a request to the gateway over a connection of its own; certificate: the client's file."""

    def send(path: str, certificate: Path | None = None, **options: Any) -> requests.Response:
        trusted = str(lab_state / "authority" / "ca.pem")
        cert = str(certificate) if certificate else None
        return requests.get(f"https://{address}{path}", verify=trusted, cert=cert, timeout=10, **options)

    return send


@pytest.fixture(scope="module")
def clients(lab_state: Path) -> Path:
    return lab_state / "clients"


@pytest.fixture(scope="module")
def alice(clients: Path) -> Path:
    return clients / "clients" / "alice.pem"


@pytest.fixture
def encrypted(clients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The authority's key lies encrypted by ansible-vault."""
    password, key = tmp_path / "password", clients / "ca.key"
    password.write_text("correct horse battery staple")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    clear = key.read_bytes()
    subprocess.run(["ansible-vault", "encrypt", key], check=True, capture_output=True)
    yield
    key.write_bytes(clear)


@pytest.fixture
def required(converge: Converge) -> Iterator[None]:
    assert converge(gateway_client_certificates="required").returncode == 0
    yield
    assert converge().returncode == 0


def mayafleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
    command = [Path(sys.executable).with_name("mayafleet"), "cert", *arguments, "--inventory", inventory]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(answer: requests.Response) -> bool:
    if answer.status_code != 403:
        return False
    assert answer.json()["error"]["code"] == "client_certificate_required"
    assert "max-age=63072000" in answer.headers["Strict-Transport-Security"]
    return True


def told(answer: requests.Response) -> str | None:
    """What the service is told of the certificate."""
    header: str | None = answer.json()["headers"].get("X-Client-Certificate")
    return header


def test_the_service_is_told_whose_certificate_it_is(host: Host, ask: Ask, alice: Path) -> None:
    secret = host.file("/etc/maya1/secrets/gateway")
    assert secret.mode == 0o600
    expected = f"{secret.content_string.strip()} CN=alice,OU=jobs,OU=speak,O=acme"
    for path in CLOSED:
        assert told(ask(path, alice)) == expected, path


def test_nobody_says_so_himself(ask: Ask, alice: Path) -> None:
    forged = {"X-Client-Certificate": "x CN=admin,OU=admin"}
    for path in (*CLOSED, *OPEN):
        assert told(ask(path, headers=forged)) is None, path
        assert "CN=alice" in str(told(ask(path, alice, headers=forged))), path


def test_the_secret_is_for_the_gateway_alone(host: Host) -> None:
    told = host.file("/etc/maya1/gateway/client_certificate.conf")
    assert (told.user, told.group, told.mode) == ("root", "www-data", 0o640)
    secret = host.file("/etc/maya1/secrets/gateway").content_string.strip()
    assert secret not in host.file("/etc/nginx/nginx.conf").content_string
    assert host.run("grep --recursive --quiet --fixed-strings -e %s /var/log/nginx", secret).rc == 1


@pytest.mark.usefixtures("required")
def test_required(host: Host, ask: Ask, alice: Path) -> None:
    for path in CLOSED:
        assert refused(ask(path)), path
        assert ask(path, alice).status_code == 200, path
    for path in OPEN:
        assert ask(path).status_code == 200, path
    # Monitoring and role drain have no certificate.
    for path in ("/metrics", "/gateway/status"):
        assert host.check_output(f"curl -sk -o /dev/null -w %{{http_code}} https://127.0.0.1{path}") == "200"


def test_another_authority_is_refused(ask: Ask, tmp_path: Path) -> None:
    stranger = Authority.create(tmp_path / "strangers").issue("alice", days=30)
    for path in (*CLOSED, *OPEN):
        assert refused(ask(path, stranger)), path


def test_an_expired_certificate_is_refused(ask: Ask, clients: Path) -> None:
    late = Authority(clients).issue("late", days=0)
    assert refused(ask("/v1/models", late))


def test_revoked_at_once_on_every_host(address: str, ask: Ask, clients: Path, tmp_path: Path) -> None:
    assert mayafleet("issue", "mallory").returncode == 0
    mallory = clients / "clients" / "mallory.pem"
    assert ask("/v1/models", mallory).status_code == 200
    session = tmp_path / "session"
    asked = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    def openssl(option: str) -> bytes:
        """TLS 1.2, whose sessions are there as soon as the connection is."""
        client = [
            "openssl",
            "s_client",
            "-tls1_2",
            "-connect",
            f"{address}:443",
            "-cert",
            mallory,
            "-ign_eof",
        ]
        run = subprocess.run([*client, option, session], input=asked, capture_output=True, check=False)
        return run.stdout

    assert b"HTTP/1.1 200" in openssl("-sess_out")
    run = mayafleet("revoke", "mallory")
    assert run.returncode == 0, run.stdout + run.stderr
    assert refused(ask("/v1/models", mallory))
    # Nor does a session help that was begun when the certificate was good.
    assert b"HTTP/1.1 200" not in openssl("-sess_in")
    assert "was revoked already" in mayafleet("revoke", "mallory").stderr
    listed = mayafleet("list", "--json").stdout
    assert '"state": "revoked"' in listed
    assert "mallory" in mayafleet("list").stdout


@pytest.mark.usefixtures("encrypted")
def test_the_list_is_signed_anew_long_before_it_expires(
    host: Host, ask: Ask, converge: Converge, clients: Path, alice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(clients)
    gone = authority.issue("gone", days=30)
    monkeypatch.setattr(certs, "CRL_DAYS", 100)
    authority.revoke("gone")
    run = converge(check=True)
    assert run.returncode == 0, said(run)
    assert Authority(clients).crl_expires - datetime.now(UTC) < timedelta(days=100)
    run = converge()
    assert run.returncode == 0, said(run)
    left = Authority(clients).crl_expires - datetime.now(UTC)
    assert left > timedelta(days=363)
    assert refused(ask("/v1/models", gone))
    assert ask("/v1/models", alice).status_code == 200
    # Monitoring knows until when, and the next run changes nothing.
    crl = x509.load_pem_x509_crl(host.file("/etc/maya1/gateway/clients.crl").content)
    assert crl.next_update_utc
    metrics = host.file("/var/lib/prometheus/node-exporter/maya1_clients.prom").content_string
    assert f"maya1_client_revocations_expire_seconds {int(crl.next_update_utc.timestamp())}" in metrics
    assert "changed=0" in converge().stdout


def test_without_an_authority_the_run_says_what_to_do(host: Host, converge: Converge, tmp_path: Path) -> None:
    before = host.file("/etc/nginx/nginx.conf").sha256sum
    run = converge(gateway_client_authority_dir=str(tmp_path))
    assert run.returncode != 0
    assert "`mayafleet cert issue` makes them" in said(run)
    assert host.file("/etc/nginx/nginx.conf").sha256sum == before


def test_none_removes_what_a_client_sends(ask: Ask, converge: Converge, alice: Path) -> None:
    assert converge(gateway_client_certificates="none").returncode == 0
    forged = {"X-Client-Certificate": "x CN=admin,OU=admin"}
    for path in CLOSED:
        assert told(ask(path, alice, headers=forged)) is None, path
    assert converge().returncode == 0
