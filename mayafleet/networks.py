"""Addresses and networks: from where a connection may come."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network


def invalid(networks: Iterable[str]) -> list[str]:
    """Those that are neither an address nor a network in CIDR notation."""
    return [network for network in networks if not _is_network(network)]


def contain(networks: Iterable[str], address: str) -> bool:
    """Whether an address is in one of the networks. An IPv4 address that is written as IPv6 counts as IPv4.

    Raises ValueError when one of them is no network, or the address none.
    """
    one = ip_address(address.partition("%")[0])
    if isinstance(one, IPv6Address) and one.ipv4_mapped:
        one = one.ipv4_mapped
    return any(one in ip_network(network, strict=False) for network in networks)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
