"""One lab for the whole suite: two hosts booted, one of them provisioned with --region."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import jwt
import pytest

from tests.e2e import leaks
from tests.e2e.lab import FIRST, NAME, SECOND, Client, Lab, Run
from tests.e2e.leaks import Watched

# What a change by the playbook would leave behind: packages, files of /etc, units, the firewall.
FINGERPRINT = """
dpkg-query -W; find /etc /usr/local /opt /var/lib/maya1 -xdev -type f -exec sha256sum {} + 2>/dev/null | sort
systemctl list-unit-files --no-legend | sort; nft --stateless --terse list ruleset 2>/dev/null || true
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    # What a run that was cut off may have left behind would not be a fresh host.
    lab.mayafleet("lab", "down", *lab.options)
    booted = lab.mayafleet("lab", "up", "--all", "--no-provision", *lab.options)
    try:
        assert booted.code == 0, booted.output
        lab.plant_secrets()
        yield lab
    finally:
        lab.mayafleet("lab", "down", *lab.options)


@dataclass(frozen=True)
class Site:
    """What the runs of site.yml did, in order, and fingerprints of the host that was not asked for.

    watched: what process lists showed during the first, which was at -vvv with --diff.
    """

    fresh_check: Run
    first: Run
    watched: Watched
    second: Run
    converged_check: Run
    other_before: str
    other_after: str


@pytest.fixture(scope="session")
def site(lab: Lab) -> Site:
    other_before = lab.on(SECOND, FINGERPRINT)
    fresh_check = lab.provision("--region", "eu_frankfurt", "--check")
    wanted = leaks.needles(lab.secrets) | {"decoy": token_hex(16)}
    on_host = ("docker", "exec", "-i", f"{NAME}-{FIRST}", "python3")
    with leaks.watch(wanted, [on_host, (sys.executable,)]) as watched:
        first = lab.provision("--region", "eu_frankfurt", "--diff", "-vvv")
        lab.on(FIRST, f"DECOY={wanted['decoy']} sh -c 'sleep 2; true' {wanted['decoy']}")
    # Over a lab that runs already: must be safe, and speaks at the end.
    second = lab.mayafleet("lab", "up", *lab.options)
    converged_check = lab.provision("--region", "eu_frankfurt", "--check")
    return Site(
        fresh_check, first, watched, second, converged_check, other_before, lab.on(SECOND, FINGERPRINT)
    )


@pytest.fixture(scope="session")
def token(lab: Lab) -> str:
    issued = lab.mayafleet(
        "jwt", "issue", "--subject", "tests", "--ttl", "2h", "-i", str(lab.inventory), "--host", FIRST
    )
    assert issued.code == 0, issued.output
    return issued.output.strip()


@pytest.fixture(scope="session")
def client(lab: Lab, site: Site, token: str) -> Client:
    """A caller who may speak, on a host that is provisioned."""
    assert site.first.code == 0, site.first.output
    return Client(lab, token)


@pytest.fixture(scope="session")
def claims() -> dict[str, Any]:
    now = int(time.time())
    who = {"iss": "maya1-lab", "aud": "maya1-tts", "sub": "tests", "scope": "speak"}
    return who | {"iat": now, "exp": now + 3600}


@pytest.fixture(scope="session")
def key_id(token: str) -> str:
    kid: str = jwt.get_unverified_header(token)["kid"]
    return kid


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return tmp_path / "speech.wav"
