"""What a stranger reaches, seen from outside, whatever Docker publishes and whatever restarts."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from conftest import Converge, said
from testinfra.host import Host

Reachable = Callable[[int], bool]

OPEN = [22, 80, 443, 9001]
CLOSED = [8000, 9002, 9003]
PUBLISHED = 8081
# Without counters, and without the sources that are counted.
RULES = "nft --stateless --terse list table inet maya1_fleet"
# The host's address for a stranger, which is a network stack of its own beside the host.
FOR_STRANGERS = "10.99.0.1"

# Accepts at once as many as come, and closes what its client closes.
LISTENER = """
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family, request_queue_size = socket.AF_INET6, 1024
Server(("::", {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


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
        program = LISTENER.format(port=port)
        host.check_output(f"systemd-run --unit listen-{port} python3 -c '{program}'")
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


def nmap(run: Callable[[str], str], options: str, state: str = "open") -> list[int]:
    """The TCP ports that nmap says to be in a state."""
    found = run(f"nmap -n -Pn --max-retries 2 -oG - {options}")
    return [int(port) for port in re.findall(rf"(\d+)/{state}/tcp", found)]


@pytest.fixture(scope="module")
def stranger(host: Host) -> Iterator[Callable[[str], str]]:
    """Runs a program in a stranger's network stack."""
    host.check_output(
        "ip netns add stranger && ip link add outside type veth peer name eth0 netns stranger &&"
        f" ip address add {FOR_STRANGERS}/24 dev outside && ip link set outside up &&"
        " ip -n stranger link set eth0 up && ip -n stranger address add 10.99.0.2/24 dev eth0"
    )
    yield lambda command: str(host.check_output(f"ip netns exec stranger {command}"))
    host.run("ip netns delete stranger")


def test_nmap_finds_exactly_what_is_open_to_everybody(stranger: Callable[[str], str]) -> None:
    """Out of all ports, that of the container among them."""
    assert nmap(stranger, f"-sS -p- --min-rate 10000 {FOR_STRANGERS}") == [22, 80, 443]


def test_nmap_finds_the_same_over_ipv6(variables: dict[str, Any]) -> None:
    def here(command: str) -> str:
        return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout

    found = nmap(here, f"-6 -sT -p- -T5 --min-rate 10000 {variables['lab_address_ipv6']}")
    assert found == [22, 80, 443]


def test_packets_out_of_the_blue_are_dropped(host: Host, stranger: Callable[[str], str]) -> None:
    """Those that begin no connection, and fragments. nmap says `filtered` where nothing comes back."""
    assert nmap(stranger, f"-sA -p80,443,9001 {FOR_STRANGERS}", "filtered") == [80, 443, 9001]
    assert nmap(stranger, f"-sS -f -p443 {FOR_STRANGERS}", "filtered") == [443]
    assert nmap(stranger, f"-sS -p443 {FOR_STRANGERS}") == [443]
    rules = host.check_output("nft list table inet maya1_fleet")
    for rule in ("/ fin,syn,rst,ack", "frag-off"):
        assert re.search(rf"{rule}.* packets [1-9]", rules), rule


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
    host.check_output("systemctl stop nftables")
    without = {port: reachable(port) for port in (*CLOSED, PUBLISHED)}
    host.check_output("systemctl start nftables")
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
        host.check_output("systemctl reload nftables")
        connection.sendall(b"SSH-2.0-still_here\r\n")
        assert connection.recv(64)
    assert host.check_output("iptables-save -t nat | grep --invert-match '^#\\|^:'") == dockers


def test_only_one_unit_owns_the_rules(host: Host) -> None:
    unit = host.service("nftables")
    assert unit.is_enabled
    assert unit.is_running
    commands = host.check_output("systemctl show --property ExecStart,ExecReload,ExecStop nftables")
    assert "/etc/nftables.conf" not in commands
    assert "flush" not in commands


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"firewall_ssh_port": 2222},
            "firewall_ssh_port is 2222, but Ansible reaches lab-frankfurt-1 on port 22",
        ),
        ({"firewall_ssh_sources": []}, "firewall_ssh_sources is empty"),
        ({"firewall_ssh_sources": ["not-a-network"]}, "firewall_ssh_sources holds not-a-network"),
        (
            {"firewall_ssh_sources": ["203.0.113.0/24"]},
            "sees this connection come from {operator}, which is in none of firewall_ssh_sources",
        ),
    ],
)
def test_rules_that_lock_out_are_refused(
    host: Host, converge: Converge, wrong: dict[str, Any], message: str
) -> None:
    before = host.check_output(RULES)
    operator = host.check_output("ip route show default").split()[2]
    run = converge(**wrong)
    assert run.returncode != 0
    assert message.format(operator=operator) in said(run)
    assert host.check_output(RULES) == before


@pytest.fixture
def deceived(host: Host) -> Iterator[None]:
    """A host that lies about where Ansible comes from: what preflight cannot know."""
    host.check_output(
        "sed -i '1i export SSH_CONNECTION=\"203.0.113.9 40000 172.29.0.1 22\"' /home/ops/.bashrc"
    )
    yield
    host.run("sed -i 1d /home/ops/.bashrc")


@pytest.mark.usefixtures("deceived")
def test_rules_that_cut_ssh_take_themselves_back(host: Host, converge: Converge, address: str) -> None:
    before = host.check_output(RULES)
    with socket.create_connection((address, 22), timeout=5) as connection:
        assert connection.recv(64).startswith(b"SSH-2.0")
        run = converge(firewall_ssh_sources=["203.0.113.0/24"], firewall_confirm_seconds=20)
        # It was open through both changes of the rules.
        connection.sendall(b"SSH-2.0-still_here\r\n")
        assert connection.recv(64)
    assert run.returncode != 0
    assert "it has the rules of before" in said(run)
    assert host.check_output(RULES) == before
    # Nor would a reboot bring them.
    assert host.run("grep 203.0.113.0/24.*22 /etc/maya1/firewall.nft").rc == 1


def test_good_rules_stay_after_bad_ones(host: Host, converge: Converge) -> None:
    run = converge(firewall_confirm_seconds=20)
    assert run.returncode == 0, said(run)
    assert host.run("systemctl list-timers --all | grep maya1-firewall-revert").rc == 1
    assert host.check_output("cat /etc/maya1/firewall.nft") == host.check_output(
        "cat /etc/maya1/firewall.wanted.nft"
    )


@contextmanager
def connections(address: str, port: int, number: int) -> Iterator[int]:
    """Try to open so many connections, and keep those that are accepted: how many these were."""
    with ExitStack() as stack:
        accepted = 0
        for _ in range(number):
            try:
                stack.enter_context(socket.create_connection((address, port), timeout=0.5))
                accepted += 1
            except OSError:
                continue
        yield accepted


def test_one_source_opens_so_many_connections_at_a_time(variables: dict[str, Any], address: str) -> None:
    with connections(variables["lab_address_ipv6"], 443, 40) as accepted:
        assert accepted == 30
    with connections(address, 443, 40) as accepted:
        assert accepted == 40, "firewall_unlimited_sources are not limited"


@pytest.mark.parametrize(("port", "least"), [(22, 30), (80, 50)])
def test_one_source_opens_so_many_connections_in_a_time(
    variables: dict[str, Any], address: str, port: int, least: int
) -> None:
    def opened(where: str) -> int:
        count = 0
        for _ in range(2 * least):
            with connections(where, port, 1) as accepted:
                count += accepted
        return count

    assert least - 5 <= opened(variables["lab_address_ipv6"]) < 2 * least
    assert opened(address) == 2 * least, "firewall_unlimited_sources are not limited"


def test_sysctls_are_set_or_said_to_be_closed(host: Host, converge: Converge) -> None:
    wanted = host.check_output("cat /etc/sysctl.d/60-maya1-firewall.conf")
    assert "net.ipv4.tcp_syncookies = 1" in wanted
    told = said(converge(check=True))
    for key in re.findall(r"^(net\S+) =", wanted, re.MULTILINE):
        file = "/proc/sys/" + key.replace(".", "/")
        settable = host.run(f"test -w {file}").rc == 0
        assert settable == (key not in told)
        if settable:
            assert re.search(rf"^{key} = {host.check_output(f'cat {file}')}$", wanted, re.MULTILINE)
