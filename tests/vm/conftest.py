"""Guests for the tests. A root is made once and kept; each test module boots a layer over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mayafleet import project
from tests.vm.guest import Guest, Root, make_root

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def plain_root() -> Root:
    """Debian 12 with a kernel and role base, nothing else of ours."""
    return make_root("plain", [HERE / "root.yml"], [project.root() / "roles/base"])


@pytest.fixture(scope="module")
def plain_guest(plain_root: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(plain_root, tmp_path_factory.mktemp("guest")) as guest:
        yield guest
