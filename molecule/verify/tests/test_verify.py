"""The proof holds on a good host, and fails with the reason when one thing is broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Converge
from testinfra.host import Host


@pytest.fixture
def broken(request: pytest.FixtureRequest, host: Host) -> Iterator[str]:
    """The host with one thing broken, and what the proof must say of it."""
    damage, repair, reason = request.param
    host.check_output(damage)
    yield str(reason)
    host.check_output(repair)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            (
                "systemd-run --unit stray python3 -m http.server 2375",
                "systemctl stop stray",
                "listens beyond loopback on 0.0.0.0:2375",
            ),
            id="a stray listener",
        ),
        pytest.param(
            ("systemctl stop nftables", "systemctl start nftables", "nftables"),
            id="no firewall",
        ),
        pytest.param(
            ("systemctl stop redis-server", "systemctl start redis-server", "redis-server"), id="no cache"
        ),
        pytest.param(
            (
                "cp /etc/maya1/tls/ca.pem /root; cp /etc/ssl/certs/ISRG_Root_X1.pem /etc/maya1/tls/ca.pem",
                "mv /root/ca.pem /etc/maya1/tls/ca.pem",
                "certificate",
            ),
            id="another authority",
        ),
    ],
    indirect=True,
)
def test_what_is_broken_is_named(converge: Converge, broken: str) -> None:
    run = converge()
    assert run.returncode != 0
    assert broken in " ".join(run.stdout.split())


def test_a_good_host_passes_and_says_what_was_left_out(converge: Converge) -> None:
    run = converge()
    assert run.returncode == 0, run.stdout
    assert "without a GPU nvidia-smi was not compared with the bundle" in " ".join(run.stdout.split())


def test_a_drained_host_is_proven_without_letting_anybody_in(host: Host, converge: Converge) -> None:
    host.check_output("touch /var/lib/maya1/drained.json")
    try:
        run = converge()
        assert run.returncode == 0, run.stdout
        assert "the host is drained" in " ".join(run.stdout.split())
        host.check_output("systemctl stop nginx")
        assert converge().returncode != 0
    finally:
        host.check_output("rm /var/lib/maya1/drained.json; systemctl start nginx")
