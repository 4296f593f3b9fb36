"""Ansible lookup: how long a TCP connection from the controller to a host takes."""

from __future__ import annotations

import socket
import statistics
import time
from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: round_trip
short_description: How long a TCP connection from the controller to a host takes
description:
  - Connects a few times, sends nothing, and takes the median, which a single delay does not move.
options:
  _terms:
    description: Address and port.
    required: true
"""
RETURN = """
_raw:
  description:
    - C(ms), the median in milliseconds, null where a connection fails; C(source), the controller's name;
      C(target), address and port.
  type: list
  elements: dict
"""

CONNECTIONS = 5
TIMEOUT_SECONDS = 5.0


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    def run(self, terms: list[Any], variables: Any = None, **options: Any) -> list[dict[str, Any]]:
        address, port = str(terms[0]), int(terms[1])
        return [{"ms": measure(address, port), "source": socket.gethostname(), "target": f"{address}:{port}"}]


def measure(address: str, port: int) -> float | None:
    """Median time in milliseconds to open a TCP connection, which is one round trip; None where one fails."""
    times = []
    try:
        # The name is resolved once, before the clock runs.
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        for _ in range(CONNECTIONS):
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(TIMEOUT_SECONDS)
                started = time.perf_counter()
                connection.connect(target)
                times.append((time.perf_counter() - started) * 1000)
    except OSError:
        return None
    return statistics.median(times)
