"""Metrics go through the tunnel, nothing private answers outside, keys and hosts change without harm."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import testinfra
from conftest import Converge, said
from testinfra.host import Host

SPEAKS, WATCHES = "lab-frankfurt-1", "lab-dubai-1"
ADDRESS = {SPEAKS: "10.77.1.1", WATCHES: "10.77.2.1"}
KEY = "/etc/maya1/secrets/wireguard"
CONFIGURATION = "/etc/maya1/wireguard.conf"


def lab_host(name: str) -> Host:
    inventory = str(Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent)
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=inventory, sudo=True)


@pytest.fixture(scope="module")
def speaks() -> Host:
    return lab_host(SPEAKS)


@pytest.fixture(scope="module")
def watches() -> Host:
    return lab_host(WATCHES)


def outside(host: Host) -> str:
    """The host's address for everybody."""
    return str(host.ansible.get_variables()["ansible_host"])


def status(host: Host, url: str) -> str:
    """HTTP status that a host gets; 000 for no answer."""
    return str(host.run(f"curl -sk -m 4 -o /dev/null -w '%{{http_code}}' {url}").stdout)


def scraped(host: Host) -> bool:
    """Whether Prometheus there has read the other host's metrics."""
    promql = quote(f'up{{job="node", host="{SPEAKS}"}} == 1')
    answer = host.check_output(f"curl -s 'http://127.0.0.1:9090/api/v1/query?query={promql}'")
    return bool(json.loads(answer)["data"]["result"])


def eventually(question: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(1)
    return answer


@pytest.fixture
def join(converge: Converge) -> Converge:
    """Run the role alone again."""
    return partial(converge, playbook="network.yml")


def bytes_received(host: Host) -> int:
    return sum(int(line.split()[1]) for line in host.check_output("wg show maya1 transfer").splitlines())


def seconds_since_handshake(host: Host) -> int:
    last = host.check_output("wg show maya1 latest-handshakes").split()[1]
    return int(host.check_output("date +%s")) - int(last)


# --- traffic ---


def test_prometheus_scrapes_through_the_tunnel(speaks: Host, watches: Host) -> None:
    assert eventually(lambda: scraped(watches))
    assert seconds_since_handshake(watches) < 180
    before = bytes_received(watches)
    time.sleep(3)
    assert bytes_received(watches) - before > 10_000, "each scrape carries the metrics of a machine"
    log = speaks.check_output("tail -n 1 /var/log/nginx/access.log")
    assert json.loads(log)["address"] == ADDRESS[WATCHES]


def test_without_the_tunnel_nothing_is_scraped(watches: Host) -> None:
    watches.check_output("systemctl stop maya1-wireguard")
    try:
        assert eventually(lambda: not scraped(watches))
    finally:
        watches.check_output("systemctl start maya1-wireguard")
    assert eventually(lambda: scraped(watches))


@pytest.mark.parametrize("path", ["/metrics", "/metrics/node", "/metrics/gpu"])
def test_metrics_are_closed_at_the_outer_address(speaks: Host, watches: Host, path: str) -> None:
    assert status(watches, f"https://{outside(speaks)}{path}") == "403"


def test_metrics_are_open_within(watches: Host) -> None:
    assert status(watches, f"https://{ADDRESS[SPEAKS]}/metrics/node") == "200"


def test_a_port_of_loopback_is_open_within_alone(speaks: Host, watches: Host) -> None:
    assert status(watches, f"http://{ADDRESS[SPEAKS]}:50051/") == "200"
    assert status(watches, f"http://{outside(speaks)}:50051/") == "000"
    # The other host has something there as well, and opens it to nobody.
    assert status(watches, "http://127.0.0.1:50051/") == "200"
    assert status(speaks, f"http://{ADDRESS[WATCHES]}:50051/") == "000"


def test_only_ssh_and_the_gateway_answer_outside(speaks: Host, watches: Host) -> None:
    """Of all TCP ports of the host that speaks; and no port at all but SSH of the one that watches."""
    for asks, asked, expected in ((watches, speaks, [22, 80, 443]), (speaks, watches, [22])):
        found = asks.check_output(
            f"nmap -n -Pn -sS -p- --min-rate 10000 --max-retries 2 -oG - {outside(asked)}"
        )
        assert [int(port) for port in re.findall(r"(\d+)/open/tcp", found)] == expected


def test_an_inner_address_does_not_answer_outside_of_the_tunnel(speaks: Host, watches: Host) -> None:
    """A neighbour on the same network may send packets for any address to the host: these are dropped."""
    # What listens there and is open to everybody, for any other address.
    assert status(watches, f"https://{ADDRESS[SPEAKS]}/livez") != "000"
    watches.check_output(f"ip route add {ADDRESS[SPEAKS]}/32 via {outside(speaks)} dev eth0")
    try:
        assert status(watches, f"https://{ADDRESS[SPEAKS]}/livez") == "000"
        # Nor from an inner address.
        own = f"--interface {ADDRESS[WATCHES]}"
        assert status(watches, f"{own} https://{outside(speaks)}/livez") == "000"
    finally:
        watches.check_output(f"ip route del {ADDRESS[SPEAKS]}/32")
    dropped = speaks.check_output("nft list chain inet maya1_fleet input")
    assert re.search(r"ip daddr 10\.77\.0\.0/16 counter packets [1-9]", dropped)


def test_the_port_is_open_to_peers_alone(speaks: Host, watches: Host) -> None:
    rules = speaks.check_output("nft list chain inet maya1_fleet input")
    opening = next(line for line in rules.splitlines() if "dport 51820" in line)
    assert f"ip saddr {outside(watches)} udp" in opening
    assert "dport 51820" not in rules.replace(opening, "")


# --- keys ---


def test_the_private_key_is_root_s_alone_and_nowhere_else(speaks: Host, watches: Host) -> None:
    for host in (speaks, watches):
        key = host.file(KEY)
        assert (key.user, key.mode) == ("root", 0o600)
        # Not by its text: sudo writes commands to the journal.
        assert host.check_output(f"grep -rlFf {KEY} /etc /usr/local /var/log /run").split() == [KEY]
    assert speaks.file(KEY).content_string != watches.file(KEY).content_string


def test_another_key_is_made_and_told_to_the_peers(speaks: Host, watches: Host, join: Converge) -> None:
    before = speaks.check_output("wg show maya1 public-key")
    speaks.check_output(f"rm {KEY}")
    run = join()
    assert run.returncode == 0, said(run)
    after = speaks.check_output("wg show maya1 public-key")
    assert after != before
    assert watches.check_output("wg show maya1 peers") == after
    assert eventually(lambda: scraped(watches))


# --- runs over some of the hosts ---


def test_a_run_over_one_host_keeps_its_peers(watches: Host, join: Converge) -> None:
    before = watches.check_output(f"cat {CONFIGURATION}")
    run = join(limit=WATCHES)
    assert run.returncode == 0, said(run)
    assert "no tunnel to" not in said(run)
    assert watches.check_output(f"cat {CONFIGURATION}") == before
    assert eventually(lambda: scraped(watches))


def test_a_peer_whose_key_was_never_told_is_named(watches: Host, join: Converge) -> None:
    watches.check_output(f"cp {CONFIGURATION} /root; sed -i '/^\\[Peer\\]/,$d' {CONFIGURATION}")
    alone = join(limit=WATCHES)
    together = join()
    assert alone.returncode == 0, said(alone)
    assert f"wireguard: no tunnel to {SPEAKS} yet" in said(alone)
    assert "no tunnel to" not in said(together)
    assert watches.check_output(f"diff /root/wireguard.conf {CONFIGURATION}") == ""
    assert eventually(lambda: scraped(watches))


@pytest.fixture
def without_the_speaker(tmp_path: Path) -> Path:
    """An inventory, to be read after the scenario's, in which that host is in no private network."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(f"all: {{hosts: {{{SPEAKS}: {{wireguard_network: ''}}}}}}")
    return inventory


def test_a_removed_peer_is_refused_and_a_removed_host_cleans_up(
    speaks: Host, watches: Host, join: Converge, without_the_speaker: Path
) -> None:
    assert eventually(lambda: scraped(watches))
    try:
        run = join(after=without_the_speaker, limit=WATCHES)
        assert run.returncode == 0, said(run)
        assert watches.check_output("wg show maya1 peers") == ""
        assert "dport 51820" not in watches.check_output("nft list chain inet maya1_fleet input")
        # It has its key and the other's still, and wants in.
        speaks.check_output("systemctl restart maya1-wireguard")
        time.sleep(10)
        assert speaks.check_output("wg show maya1 latest-handshakes").split()[1] == "0"
        assert not scraped(watches)

        left = join(after=without_the_speaker, limit=SPEAKS)
        assert left.returncode == 0, said(left)
        assert not speaks.interface("maya1").exists
        assert not speaks.socket(f"tcp://{ADDRESS[SPEAKS]}:50051").is_listening
        for path in (KEY, CONFIGURATION, "/etc/maya1/firewall.d/wireguard.nft"):
            assert not speaks.file(path).exists
    finally:
        back = join()
    assert back.returncode == 0, said(back)
    assert eventually(lambda: scraped(watches))


# --- what lasts ---


def test_a_change_of_peers_keeps_sessions(watches: Host) -> None:
    """What a run does when the list of peers changed: nothing stops, and no handshake is needed anew."""
    started = watches.check_output("systemctl show maya1-wireguard --property=ActiveEnterTimestampMonotonic")
    last = watches.check_output("wg show maya1 latest-handshakes")
    stranger = watches.check_output("wg genkey | wg pubkey")
    watches.check_output(f"wg set maya1 peer {stranger} allowed-ips 10.77.9.9/32")
    watches.check_output("systemctl reload maya1-wireguard")
    assert stranger not in watches.check_output("wg show maya1 peers")
    assert watches.check_output("wg show maya1 latest-handshakes") == last
    assert status(watches, f"https://{ADDRESS[SPEAKS]}/metrics/node") == "200"
    now = watches.check_output("systemctl show maya1-wireguard --property=ActiveEnterTimestampMonotonic")
    assert now == started


def test_a_killed_tunnel_comes_back(speaks: Host, watches: Host) -> None:
    """In user space it is a process, which may die; a lab host's kernel has no WireGuard."""
    assert speaks.service("maya1-wireguard").is_enabled
    speaks.check_output("systemctl kill --signal=KILL maya1-wireguard")
    assert eventually(lambda: status(watches, f"https://{ADDRESS[SPEAKS]}/metrics/node") == "200")


# --- what is refused ---


@pytest.fixture
def unchanged(watches: Host) -> Iterator[None]:
    before = watches.check_output("wg showconf maya1")
    yield
    assert watches.check_output("wg showconf maya1") == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("address", "10.77.3.3", f"wireguard_address of {SPEAKS} is 10.77.3.3, which {WATCHES} has already"),
        ("network", "10.99.0.0/16", f"{SPEAKS} is '10.77.1.1'; it must be one in 10.99.0.0/16"),
        ("endpoint", "a.example.net", f"{SPEAKS} (ansible_host, if not set) is 'a.example.net'"),
        ("port", 70000, "wireguard_port is 70000"),
        ("ports", [0], "wireguard_ports [0]"),
    ],
)
def test_a_wrong_value_is_named(join: Converge, variable: str, value: object, message: str) -> None:
    run = join(check=True, **{f"wireguard_{variable}": value})
    assert run.returncode != 0
    assert message in said(run)
