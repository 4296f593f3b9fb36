"""The private network by the kernel's own WireGuard. By wireguard-go, molecule/wireguard shows more of it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.vm.guest import Guest, recap

HERE = Path(__file__).parent
INNER, NEIGHBOUR_INNER = "10.77.1.1", "10.77.2.1"
OUTER, NEIGHBOUR_OUTER = "192.0.2.1", "192.0.2.2"
PORT = 50051

# Another host: a network of its own, with one cable to the guest and the other end of the tunnel.
NEIGHBOUR = f"""
set -e
ip netns add neighbour
ip link add cable type veth peer name cable netns neighbour
ip address add {OUTER}/24 dev cable
ip link set cable up
ip -n neighbour address add {NEIGHBOUR_OUTER}/24 dev cable
ip -n neighbour link set cable up
ip -n neighbour link add tunnel type wireguard
ip netns exec neighbour wg set tunnel private-key /dev/stdin listen-port 51820 \\
    peer "$(wg show maya1 public-key)" allowed-ips {INNER}/32 endpoint {OUTER}:51820 <<KEY
PRIVATE
KEY
ip -n neighbour address add {NEIGHBOUR_INNER}/16 dev tunnel
ip -n neighbour link set tunnel up
systemd-run --unit loopback python3 -m http.server --bind 127.0.0.1 {PORT}
"""

# Prints the status that the neighbour gets.
ASK = """
ip netns exec neighbour python3 - <<'END'
import urllib.request
try:
    print(urllib.request.urlopen("http://ADDRESS:PORT/", timeout=20).status)
except OSError:
    print("no answer")
END
"""


@dataclass(frozen=True)
class Member:
    """The guest as a member of the private network."""

    guest: Guest
    neighbour: X25519PrivateKey

    def join(self) -> dict[str, int]:
        """Run the roles; what changed."""
        public = base64.b64encode(self.neighbour.public_key().public_bytes_raw()).decode()
        # What a run over both hosts would have told.
        neighbour = {
            "wireguard_network": "10.77.0.0/16",
            "wireguard_address": NEIGHBOUR_INNER,
            "wireguard_endpoint": NEIGHBOUR_OUTER,
            "__wireguard_public_key": public,
        }
        own = {"wireguard_network": "10.77.0.0/16", "wireguard_address": INNER, "wireguard_ports": [PORT]}
        return recap(self.guest.play(HERE / "wireguard.yml", {"guest": own, "neighbour": neighbour}))

    def meet(self) -> None:
        """Make the neighbour, who is gone after a boot."""
        private = base64.b64encode(self.neighbour.private_bytes_raw()).decode()
        self.guest.run(NEIGHBOUR.replace("PRIVATE", private))

    def answers(self, address: str) -> str:
        return self.guest.run(ASK.replace("ADDRESS", address).replace("PORT", str(PORT))).strip()


@pytest.fixture(scope="module")
def member(plain_guest: Guest) -> Member:
    member = Member(plain_guest, X25519PrivateKey.generate())
    member.join()
    member.meet()
    return member


def test_the_kernel_carries_the_tunnel(member: Member) -> None:
    assert "wireguard" in member.guest.run("ip -details link show maya1")
    assert "wireguard-go" not in member.guest.run("dpkg-query -W -f '${Package}\n'; ps -e -o comm")


def test_a_port_of_loopback_answers_within_alone(member: Member) -> None:
    assert member.answers(INNER) == "200"
    assert member.answers(OUTER) == "no answer"


def test_a_second_run_changes_nothing(member: Member) -> None:
    assert member.join()["changed"] == 0


def test_a_reboot_keeps_it(member: Member) -> None:
    member.guest.reboot()
    member.meet()
    assert member.answers(INNER) == "200"
    assert member.answers(OUTER) == "no answer"
