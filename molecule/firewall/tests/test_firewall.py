"""What a stranger reaches, seen from outside, whatever Docker publishes and whatever restarts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Converge
from testinfra.host import Host

Reachable = Callable[[int], bool]

OPEN = [22, 80, 443, 9001]
CLOSED = [8000, 9002]
PUBLISHED = 8081
RULES = "nft list table inet maya1_fleet"


def answers_inside(host: Host, port: int) -> None:
    """Wait until something on the host itself answers on a port."""
    host.check_output(
        f"timeout 20 bash -c 'until : </dev/tcp/127.0.0.1/{port}; do sleep 0.2; done 2>/dev/null'"
    )


@pytest.fixture(scope="module", autouse=True)
def listeners(host: Host) -> Iterator[None]:
    """Something answers on each of these ports; a container publishes one more on all addresses."""
    listening = [*OPEN[1:], *CLOSED]
    for port in listening:
        host.check_output(f"systemd-run --unit listen-{port} python3 -m http.server {port} --bind ::")
    host.check_output(
        f"docker run --detach --name published --publish 0.0.0.0:{PUBLISHED}:80 tiny httpd -f -p 80"
    )
    for port in (*listening, PUBLISHED):
        answers_inside(host, port)
    yield
    for port in listening:
        host.run(f"systemctl stop listen-{port}")
    host.run("docker rm --force published")


def test_only_what_is_named_is_open(reachable: Reachable) -> None:
    assert {port: reachable(port) for port in OPEN + CLOSED} == {port: port in OPEN for port in OPEN + CLOSED}


def test_the_same_holds_over_ipv6(variables: dict[str, Any]) -> None:
    def connects(port: int) -> bool:
        try:
            socket.create_connection((variables["lab_address_ipv6"], port), timeout=2).close()
        except OSError:
            return False
        return True

    assert {port: connects(port) for port in (22, 443, *CLOSED)} == {
        22: True,
        443: True,
        **dict.fromkeys(CLOSED, False),
    }


def test_a_port_that_docker_publishes_stays_closed(host: Host, reachable: Reachable) -> None:
    assert not reachable(PUBLISHED)
    # Nor by the container's own address, for a neighbour that sends packets for it to this host.
    assert "policy drop" in host.check_output("nft list chain inet maya1_fleet forward")


def test_it_is_the_firewall_that_closes_them(host: Host, reachable: Reachable) -> None:
    host.check_output("systemctl stop maya1-firewall")
    without = {port: reachable(port) for port in (*CLOSED, PUBLISHED)}
    host.check_output("systemctl start maya1-firewall")
    assert all(without.values())
    assert not any(reachable(port) for port in without)


def test_containers_may_connect_out(host: Host) -> None:
    with socket.create_server(("", 0)) as server:
        server.settimeout(10)
        gateway = host.check_output("ip route show default").split()[2]
        host.run(f"docker run --detach --rm tiny nc -w 5 {gateway} {server.getsockname()[1]}")
        server.accept()[0].close()


def test_rules_survive_a_restart_of_docker(host: Host, reachable: Reachable) -> None:
    before = host.check_output(RULES)
    host.check_output("systemctl restart docker")
    answers_inside(host, PUBLISHED)
    assert host.check_output(RULES) == before
    assert reachable(22)
    assert not reachable(PUBLISHED)


def test_a_reload_keeps_connections_and_dockers_rules(host: Host, address: str) -> None:
    dockers = host.check_output("iptables-save -t nat | grep --invert-match '^#\\|^:'")
    with socket.create_connection((address, 22), timeout=5) as connection:
        assert connection.recv(64).startswith(b"SSH-2.0")
        host.check_output("systemctl reload maya1-firewall")
        connection.sendall(b"SSH-2.0-still_here\r\n")
        assert connection.recv(64)
    assert host.check_output("iptables-save -t nat | grep --invert-match '^#\\|^:'") == dockers


def test_only_one_unit_owns_the_rules(host: Host) -> None:
    assert host.service("maya1-firewall").is_enabled
    assert not host.service("nftables").is_enabled


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"firewall_ssh_port": 2222},
            "firewall_ssh_port is 2222, but Ansible reaches lab-frankfurt-1 on port 22",
        ),
        ({"firewall_ssh_sources": []}, "firewall_ssh_sources is empty"),
        ({"firewall_ssh_sources": ["not-a-network"]}, "not-a-network"),
    ],
)
def test_rules_that_lock_out_are_refused(
    host: Host, converge: Converge, wrong: dict[str, Any], message: str
) -> None:
    before = host.check_output(RULES)
    run = converge(**wrong)
    assert run.returncode != 0
    assert message in " ".join(run.stdout.split())
    assert host.check_output(RULES) == before
