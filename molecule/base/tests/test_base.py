"""The host trusts whom it was told to trust, and the role says clearly what it cannot work with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Converge
from testinfra.host import Host


@pytest.mark.parametrize(("authority", "trusted"), [("wanted", True), ("dropped", False)])
def test_trust_follows_the_variable(host: Host, lab_state: Path, authority: str, trusted: bool) -> None:
    certificate = (lab_state / f"{authority}.pem").read_text()
    assert (host.run("echo %s | openssl verify", certificate).rc == 0) is trusted


def test_what_is_no_certificate_is_refused(host: Host, converge: Converge, variables: dict[str, Any]) -> None:
    run = converge(
        base_extra_ca_certificates=[
            *variables["base_extra_ca_certificates"],
            {"name": "wanted", "content": "text"},
        ]
    )
    assert run.returncode != 0
    assert "failed to validate" in run.stdout
    assert host.run("openssl verify /usr/local/share/ca-certificates/maya1/wanted.crt").rc == 0


def test_folders(host: Host) -> None:
    assert host.file("/etc/maya1").mode == 0o755
    secrets = host.file("/etc/maya1/secrets")
    assert (secrets.user, secrets.mode) == ("root", 0o700)


def test_proxies_reach_login_sessions_and_go_again(host: Host, converge: Converge) -> None:
    others = host.file("/etc/environment").content_string if host.file("/etc/environment").exists else ""
    # The probe of the network would go through that proxy.
    assert (
        converge(
            base_proxy_environment={"https_proxy": "http://proxy.example:3128"}, base_tls_probe_url=""
        ).returncode
        == 0
    )
    assert (
        host.check_output("su - ops -c 'echo $https_proxy $HTTPS_PROXY'").split()
        == ["http://proxy.example:3128"] * 2
    )
    assert converge(base_proxy_environment={}).returncode == 0
    assert host.file("/etc/environment").content_string.strip() == others.strip()


def test_the_package_index_is_for_builds_alone_and_goes_again(host: Host, converge: Converge) -> None:
    host.check_output("echo '# of somebody else' > /etc/pip.conf")
    run = converge(base_pip_index_url="https://user:canary@index.example/simple", base_tls_probe_url="")
    assert run.returncode == 0
    assert "canary" not in run.stdout
    assert host.file("/etc/maya1/pip.conf").mode == 0o600
    assert host.file("/etc/maya1/pip.conf").contains("canary@index.example")
    assert host.file("/etc/pip.conf").content_string == "# of somebody else\n"
    assert converge(base_pip_index_url="").returncode == 0
    assert not host.file("/etc/maya1/pip.conf").exists
    host.check_output("rm /etc/pip.conf")


@pytest.fixture
def stranger(host: Host) -> Iterator[str]:
    """A URL whose certificate no authority known to the host has signed."""
    host.check_output(
        "openssl req -x509 -newkey ed25519 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
        " -keyout /root/stranger.key -out /root/stranger.pem"
    )
    host.check_output(
        "systemd-run --unit stranger openssl s_server -accept 127.0.0.1:4433 -www"
        " -cert /root/stranger.pem -key /root/stranger.key"
    )
    yield "https://127.0.0.1:4433/"
    host.check_output("systemctl stop stranger; rm /root/stranger.*")


def test_unknown_authority_is_named_with_the_remedy(converge: Converge, stranger: str) -> None:
    run = converge(base_tls_probe_url=stranger)
    assert run.returncode != 0
    assert "base_extra_ca_certificates" in run.stdout


def test_missing_network_is_named_with_the_remedy(converge: Converge) -> None:
    run = converge(base_tls_probe_url="https://127.0.0.1:1/")
    assert run.returncode != 0
    assert "cannot reach https://127.0.0.1:1/" in run.stdout
    assert "base_proxy_environment" in run.stdout


@pytest.fixture
def other_distribution(host: Host) -> Iterator[str]:
    """The host claims to run a release that nobody tested."""
    files = "/usr/lib/os-release /etc/debian_version"
    host.check_output(f"tar -C / -cf /root/release.tar {files}")
    host.check_output(
        "sed -i 's/12/11/; s/bookworm/bullseye/' /usr/lib/os-release && echo 11.9 > /etc/debian_version"
    )
    yield "Debian 11.9"
    host.check_output("tar -C / -xf /root/release.tar && rm /root/release.tar")


def test_untested_distribution_is_refused(converge: Converge, other_distribution: str) -> None:
    run = converge()
    assert run.returncode != 0
    assert f"runs {other_distribution}" in run.stdout
    assert "supported are Debian 12, Ubuntu 22.04 and Ubuntu 24.04" in " ".join(run.stdout.split())
