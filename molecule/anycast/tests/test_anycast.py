"""What a router learns: the prefixes while the gateway is ready, nothing when it is not or nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from conftest import Converge, said
from testinfra.host import Host

PREFIXES = ["2001:db8:113::/48", "203.0.113.0/24"]


def routes(host: Host) -> list[str]:
    """Prefixes that the router has from BGP."""
    lines = host.check_output("birdc -s /run/router.ctl 'show route'").splitlines()
    return sorted(line.split()[0] for line in lines if "unicast" in line)


def wait_for(host: Host, expected: list[str]) -> None:
    until = time.monotonic() + 60
    while routes(host) != expected and time.monotonic() < until:
        time.sleep(0.5)
    assert routes(host) == expected


@pytest.fixture(autouse=True)
def announced(host: Host) -> Iterator[None]:
    wait_for(host, PREFIXES)
    yield
    host.check_output("echo ready >/opt/gateway/readyz; systemctl start bird maya1-anycast")
    wait_for(host, PREFIXES)


def test_clients_are_led_to_the_host(host: Host) -> None:
    for address in ("203.0.113.1", "[2001:db8:113::1]"):
        answer = host.check_output(f"ip netns exec router curl -s -m 5 http://{address}:8000/readyz")
        assert answer == "ready"


def test_a_gateway_that_is_not_ready_is_withdrawn_and_still_answers(host: Host) -> None:
    host.check_output("rm /opt/gateway/readyz; touch /opt/gateway/running-stream")
    wait_for(host, [])
    # Packets that are under way still find it.
    host.check_output(
        "ip -n router route add 203.0.113.1 via 192.0.2.1;"
        " ip netns exec router curl -sf -m 5 http://203.0.113.1:8000/running-stream;"
        " ip -n router route del 203.0.113.1 via 192.0.2.1"
    )


def test_one_bad_answer_withdraws_nothing(host: Host) -> None:
    host.check_output(
        "mv /opt/gateway/readyz /opt/gateway/away; sleep 1; mv /opt/gateway/away /opt/gateway/readyz; sleep 3"
    )
    assert routes(host) == PREFIXES
    assert "Withdrawn" not in host.check_output("journalctl --unit maya1-anycast --since '-4s'")


def test_without_its_watcher_the_host_is_withdrawn(host: Host) -> None:
    host.check_output("systemctl stop maya1-anycast")
    wait_for(host, [])
    # A killed one comes back by itself.
    host.check_output("systemctl start maya1-anycast; systemctl kill --signal=KILL maya1-anycast")
    wait_for(host, PREFIXES)


def test_it_is_announced_again_after_a_restart_of_bird(host: Host) -> None:
    host.check_output("systemctl restart bird")
    wait_for(host, PREFIXES)


def test_the_password_is_root_s(host: Host) -> None:
    configuration = host.file("/etc/bird/bird.conf")
    assert (configuration.user, configuration.mode) == ("bird", 0o640)


def test_an_address_that_nobody_is_led_to_is_refused(host: Host, converge: Converge) -> None:
    run = converge(anycast_addresses=["198.51.100.1"])
    assert run.returncode != 0
    assert "anycast_addresses has 198.51.100.1, which is in none of anycast_prefixes" in said(run)


def test_a_router_that_does_not_listen_is_named(host: Host, converge: Converge) -> None:
    run = converge(anycast_neighbors=[{"address": "192.0.2.2", "as": 64999}])
    back = converge()
    assert run.returncode != 0
    assert "0 of 1 BGP sessions" in said(run)
    assert back.returncode == 0, back.stdout
