"""What a host gets is loaded, or refused before anything is changed."""

import subprocess
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"fleet_bundle": "999"}, "There is no bundle '999'"),
        ({"hardware": {"gpu": "NVIDIA B200"}}, "driver 535 does not know Blackwell"),
        ({"fleet_refuse_insecure": True}, "535 reached its end of life"),
    ],
)
def test_what_does_not_go_together_is_refused(
    converge: Callable[..., "subprocess.CompletedProcess[str]"], variables: dict[str, object], told: str
) -> None:
    done = converge(**variables)
    assert done.returncode != 0
    assert told in " ".join(done.stdout.split())
