"""Who is in a network."""

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
