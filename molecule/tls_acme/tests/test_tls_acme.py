"""A certificate from a real ACME server (pebble) by a real client (lego), renewed under running answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Converge, said
from testinfra.host import Host

TLS = "/etc/maya1/tls"
NAME = "host.speech.test"
ALL_DAYS = 2000  # more than the five years that pebble signs for


def fetch(path: str, options: str = "") -> str:
    """curl as a client that trusts pebble's root and asks for the certificate's name."""
    return f"curl --silent --fail --cacert /opt/acme/root.pem --resolve {NAME}:443:127.0.0.1 {options} https://{NAME}{path}"


def served(host: Host) -> str:
    """Serial number of the certificate that the gateway shows."""
    shown = f"openssl s_client -connect 127.0.0.1:443 -servername {NAME} </dev/null 2>/dev/null"
    return str(host.check_output(f"{shown} | openssl x509 -noout -serial"))


def pair(host: Host) -> str:
    return str(host.check_output(f"sha256sum {TLS}/fullchain.pem {TLS}/privkey.pem"))


@pytest.fixture(scope="module", autouse=True)
def root(host: Host) -> None:
    """pebble makes a new root whenever it starts."""
    host.check_output("curl -sk https://127.0.0.1:15000/roots/0 -o /opt/acme/root.pem")


@pytest.fixture
def broken_nginx(host: Host) -> Iterator[None]:
    host.check_output("cp /etc/nginx/nginx.conf /opt/acme/nginx.conf; echo nonsense >>/etc/nginx/nginx.conf")
    yield
    host.check_output("cp /opt/acme/nginx.conf /etc/nginx/nginx.conf; systemctl reset-failed maya1-acme")


def test_clients_can_verify_the_certificate(host: Host) -> None:
    assert host.check_output(fetch("/livez", "--output /dev/null --write-out '%{http_code}'")) == "200"
    key = host.file(f"{TLS}/privkey.pem")
    assert (key.user, key.group, key.mode) == ("root", "www-data", 0o640)


def test_a_timer_renews_it(host: Host) -> None:
    assert host.service("maya1-acme.timer").is_enabled
    assert host.service("maya1-acme.timer").is_running
    assert "RandomizedDelayUSec=6h" in host.check_output(
        "systemctl show maya1-acme.timer --property RandomizedDelayUSec"
    )
    # Closed in: 0 is nothing at all, 100 is everything that root may.
    host.check_output("systemd-analyze security --threshold=40 maya1-acme.service")


def test_nothing_is_asked_for_while_there_is_time(host: Host) -> None:
    before = pair(host)
    host.check_output("systemctl start maya1-acme")
    assert pair(host) == before
    assert "stays valid" in host.check_output("journalctl --unit maya1-acme --lines 5 --output cat")


def test_renewed_under_a_running_answer(host: Host, converge: Converge) -> None:
    before = served(host)
    listen = f"{fetch('/v1/slow?pieces=30', '--no-buffer')} >/opt/acme/heard && touch /opt/acme/ended"
    host.check_output("systemd-run --unit listener sh -c %s", listen)
    host.check_output("timeout 10 sh -c 'until grep -q first /opt/acme/heard; do sleep 0.2; done'")
    run = converge(tls_renew_before_days=ALL_DAYS)
    assert run.returncode == 0, said(run)
    after = served(host)
    assert after != before
    # What was begun with the old certificate went on meanwhile, and ends whole.
    assert not host.file("/opt/acme/ended").exists
    host.check_output("timeout 90 sh -c 'until test -e /opt/acme/ended; do sleep 0.5; done'")
    assert host.file("/opt/acme/heard").content_string == "first" + 29 * "second"
    assert converge().returncode == 0
    assert served(host) == after


def test_monitoring_knows_until_when(host: Host) -> None:
    metrics = host.file("/var/lib/prometheus/node-exporter/maya1_tls.prom").content_string
    told = re.search(r"^maya1_certificate_expires_seconds (\d+)$", metrics, re.MULTILINE)
    end = host.check_output(
        f'date --date "$(openssl x509 -in {TLS}/fullchain.pem -noout -enddate | cut -d= -f2)" +%s'
    )
    assert told
    assert told[1] == end


def test_a_failure_is_seen_and_the_certificate_stays(host: Host, converge: Converge) -> None:
    before = pair(host)
    run = converge(tls_acme_directory="https://localhost:1/dir")
    assert run.returncode != 0
    assert f"got no certificate for {NAME} from https://localhost:1/dir" in said(run)
    assert "connection refused" in said(run)
    assert host.check_output("systemctl show maya1-acme --property Result") == "Result=exit-code"
    assert pair(host) == before
    assert converge().returncode == 0


@pytest.mark.usefixtures("broken_nginx")
def test_what_nginx_refuses_is_taken_back(host: Host) -> None:
    before = pair(host)
    host.check_output("rm /var/lib/maya1-acme/wanted")
    assert host.run("systemctl start maya1-acme").failed
    assert "the present certificate stays" in host.check_output(
        "journalctl --unit maya1-acme --lines 20 --output cat"
    )
    assert pair(host) == before


def test_dns_and_a_secret_that_is_for_root_alone(host: Host, converge: Converge) -> None:
    secret = host.check_output("sed -n 's/.*secret \"\\(.*\\)\";/\\1/p' /etc/bind/acme.key")
    credentials = {
        "RFC2136_NAMESERVER": "127.0.0.1", "RFC2136_TSIG_ALGORITHM": "hmac-sha256.",
        "RFC2136_TSIG_KEY": "acme", "RFC2136_TSIG_SECRET": secret,
    }  # fmt: skip
    names = ["*.speech.test", NAME]
    run = converge(tls_names=names, tls_acme_dns_provider="rfc2136", tls_acme_dns_credentials=credentials)
    assert run.returncode == 0, said(run)
    found = host.check_output(f"openssl x509 -in {TLS}/fullchain.pem -noout -ext subjectAltName")
    assert all(f"DNS:{name}" in found for name in names)
    assert secret not in run.stdout
    holds = host.run(
        "grep --recursive --files-with-matches --fixed-strings -e %s /etc /usr/local /var/lib", secret
    )
    assert set(holds.stdout.split()) == {"/etc/bind/acme.key", "/etc/maya1/acme/environment"}
    assert host.file("/etc/maya1/acme/environment").mode == 0o600
    assert converge().returncode == 0


def test_another_source_and_back(host: Host, converge: Converge, variables: dict[str, Any]) -> None:
    before = served(host)
    own = {"tls_source": "own_authority", "tls_names": [NAME], "tls_addresses": [variables["lab_address"]]}
    assert converge(**own).returncode == 0
    again = converge(**own)
    assert "changed=0" in again.stdout
    host.check_output(f"openssl verify -CAfile {TLS}/ca.pem {TLS}/fullchain.pem")
    assert not host.file("/etc/systemd/system/maya1-acme.timer").exists
    assert host.run("systemctl is-active maya1-acme.timer").failed
    assert not host.file("/etc/maya1/acme/environment").exists
    # What was obtained before is still good, so nothing is asked for.
    assert converge().returncode == 0
    assert served(host) == before
    assert host.service("maya1-acme.timer").is_running


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"tls_acme_mail": "nobody"}, 'tls_acme_mail is "nobody"'),
        ({"tls_names": ["*.speech.test"]}, "with a wildcard, tls_acme_dns_provider is needed"),
        ({"tls_addresses": ["192.0.2.1"]}, "certificates are for names alone"),
        ({"tls_acme_directory": "http://localhost/dir"}, "https address of an ACME directory"),
    ],
)
def test_wrong_settings_are_named(converge: Converge, value: dict[str, Any], reason: str) -> None:
    run = converge(**value)
    assert run.returncode != 0
    assert reason in said(run)
