"""From another host of the same network only SSH and the gateway answer, over IPv4 and IPv6."""

import json

import pytest

from tests.e2e.lab import FIRST, SECOND, Client, Lab

# Tries to connect to every TCP port; runs on the other host, with nothing but Python.
SCAN = """
import asyncio, json, sys
async def answers(port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 1.0)
    except (OSError, asyncio.TimeoutError):
        return None
    writer.close()
    return port
async def main():
    open_ports = []
    for start in range(1, 65536, 4096):
        found = await asyncio.gather(*map(answers, range(start, min(start + 4096, 65536))))
        open_ports += [port for port in found if port]
    print(json.dumps(open_ports))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def published(client: Client, lab: Lab) -> None:
    """A container that publishes a port on all addresses, as people do by accident."""
    lab.on(FIRST, "docker run --rm --detach --name stray --publish 0.0.0.0:18080:8080 --entrypoint python3 "
                  "$(docker inspect --format '{{.Image}}' maya1-tts) -m http.server 8080")  # fmt: skip
    lab.on(
        FIRST, "for i in $(seq 50); do curl -sf 127.0.0.1:18080 -o /dev/null && exit; sleep 0.2; done; exit 1"
    )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.usefixtures("published")
def test_only_ssh_and_the_gateway_answer(lab: Lab, family: int) -> None:
    address = lab.address(FIRST, family)
    script = SCAN.replace("'", "'\\''")
    found = json.loads(lab.on(SECOND, f"ulimit -n 8192; python3 -c '{script}' {address}"))
    assert found == [22, 80, 443]


def test_what_stays_closed_does_answer_on_the_host_itself(client: Client, lab: Lab) -> None:
    """The scan finds these closed because they are guarded, not because nothing runs."""
    for url in ("8000/livez", "9090/-/ready", "9093/-/ready", "9100/metrics"):
        lab.on(FIRST, f"curl --silent --fail --output /dev/null http://127.0.0.1:{url}")
    assert "redis.sock" in lab.on(FIRST, "ls /run/maya1-redis")
