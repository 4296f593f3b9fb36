"""Addresses and networks: from where a connection may come, and who has which private address."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Any


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


def mesh_faults(network: str, hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with a private network and the hosts in it, a sentence each.

    A host has an `address`, its own in the network, and an `endpoint`, where others reach it from outside.
    """
    try:
        within = IPv4Network(network)
    except ValueError:
        within = None
    if within is None or not within.is_private or within.num_addresses < 4:
        return [
            f"wireguard_network is {network!r}; allowed is a private IPv4 network, such as 10.77.0.0/16, "
            "that ends in zeros behind its length."
        ]
    faults, owners = [], dict[IPv4Address, str]()
    for name, host in hosts.items():
        address, endpoint = _address(host["address"]), _address(host["endpoint"])
        if not host["address"]:
            faults.append(f"{name} has no wireguard_address; give it one in {within} that no other host has.")
        elif not isinstance(address, IPv4Address) or address not in within:
            faults.append(f"wireguard_address of {name} is {host['address']!r}; it must be one in {within}.")
        elif address in (within.network_address, within.broadcast_address):
            faults.append(
                f"wireguard_address of {name} is {address}; a network's first and last are no host's."
            )
        elif other := owners.get(address):
            faults.append(f"wireguard_address of {name} is {address}, which {other} has already.")
        else:
            owners[address] = name
        if endpoint is None or endpoint in within:
            faults.append(
                f"wireguard_endpoint of {name} (ansible_host, if not set) is {host['endpoint']!r}; it must "
                f"be an IP address, at which other hosts reach it from outside of {within}."
            )
    return faults


def _address(text: Any) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(str(text))
    except ValueError:
        return None


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
