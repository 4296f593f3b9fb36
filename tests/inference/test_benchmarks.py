"""Benchmarks that use other parts of the repository still fit them. What they measure is not judged here."""

import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).parents[1] / "bench" / "inference"


def test_cache_hits_are_measured_through_the_roles_gateway() -> None:
    command = [sys.executable, BENCHES / "cache_hit.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "hits/s" in done.stdout
