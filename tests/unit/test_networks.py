"""Who is in a network, and what a private network's addresses may be."""

from __future__ import annotations

import pytest

from mayafleet import networks


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("198.51.100.255", True),
        ("198.51.101.0", False),
        ("203.0.113.7", True),
        ("203.0.113.8", False),
        ("2001:db8:100:ffff::1", True),
        ("2001:db8:101::1", False),
        ("::ffff:198.51.100.1", True),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_is_in_a_network_or_not(address: str, inside: bool) -> None:
    allowed = ["198.51.100.0/24", "203.0.113.7", "2001:db8:100::/48"]
    assert networks.contain(allowed, address) is inside


def test_nobody_is_in_no_network() -> None:
    assert not networks.contain([], "198.51.100.1")


def test_what_is_no_network_is_named() -> None:
    given = ["0.0.0.0/0", "::/0", "203.0.113.7", "not-a-network", "10.0.0.0/33", "300.1.1.1", ""]
    assert networks.invalid(given) == ["not-a-network", "10.0.0.0/33", "300.1.1.1", ""]


GOOD = {"address": "10.77.0.1", "endpoint": "203.0.113.1"}


def test_a_private_network_whose_hosts_have_their_own_addresses_is_well() -> None:
    other = {"address": "10.77.255.254", "endpoint": "2001:db8::2"}
    assert networks.mesh_faults("10.77.0.0/16", {"one": GOOD, "two": other}) == []


@pytest.mark.parametrize(
    "network", ["", "10.77.0.1/16", "203.0.113.0", "8.8.0.0/16", "fd00::/64", "10.0.0.0/31", "x"]
)
def test_what_is_no_private_network_is_refused(network: str) -> None:
    (fault,) = networks.mesh_faults(network, {"one": GOOD})
    assert fault.startswith(f"wireguard_network is {network!r}; allowed is a private IPv4 network")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"address": None}, "two has no wireguard_address; give it one in 10.77.0.0/16"),
        ({"address": ""}, "two has no wireguard_address"),
        ({"address": "10.78.0.2"}, "wireguard_address of two is '10.78.0.2'; it must be one in 10.77.0.0/16"),
        ({"address": "fd00::2"}, "wireguard_address of two is 'fd00::2'; it must be one in"),
        ({"address": "two"}, "wireguard_address of two is 'two'; it must be one in"),
        ({"address": "10.77.0.0"}, "a network's first and last are no host's"),
        ({"address": "10.77.255.255"}, "a network's first and last are no host's"),
        ({"address": "10.77.0.1"}, "wireguard_address of two is 10.77.0.1, which one has already"),
        (
            {"endpoint": "two.example.net"},
            "wireguard_endpoint of two (ansible_host, if not set) is 'two.example.net'",
        ),
        ({"endpoint": "10.77.0.9"}, "at which other hosts reach it from outside of 10.77.0.0/16"),
    ],
)
def test_a_host_that_is_not_as_it_must_be_is_named(wrong: dict[str, str | None], message: str) -> None:
    two = {"address": "10.77.0.2", "endpoint": "203.0.113.2", **wrong}
    (fault,) = networks.mesh_faults("10.77.0.0/16", {"one": GOOD, "two": two})
    assert message in fault
