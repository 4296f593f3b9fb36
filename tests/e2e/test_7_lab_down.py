"""`mayafleet lab down` removes what `lab up` made, and nothing else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import FIRST, Lab


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def everything() -> set[str]:
    """Every container, volume and network there is."""
    return {
        *docker("ps", "--all", "--format", "container {{.Names}}").splitlines(),
        *docker("volume", "ls", "--format", "volume {{.Name}}").splitlines(),
        *docker("network", "ls", "--format", "network {{.Name}}").splitlines(),
    }


@pytest.fixture
def foreign() -> Iterator[str]:
    """A volume of somebody else, with a name that looks like ours."""
    name = "maya1-down-of-somebody-else"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", name)


def test_down_removes_what_up_made(tmp_path: Path, foreign: str) -> None:
    lab = Lab(tmp_path)
    options = ("--name", "maya1-down", *lab.options[2:])
    before = everything()
    for _ in range(2):  # the second time finds everything there
        up = lab.mayafleet("lab", "up", "--no-provision", *options)
        assert up.code == 0, up.output
    made = everything() - before
    assert made == {
        f"container maya1-down-{FIRST}",
        f"volume maya1-down-{FIRST}-docker",
        "network maya1-down",
    }
    down = lab.mayafleet("lab", "down", *options)
    assert down.code == 0, down.output
    assert everything() == before
    assert f"volume {foreign}" in before
    assert not lab.state.exists()
    assert not (lab.inventory / "lab.yml").exists()
    assert (lab.inventory / "hosts.yml").exists()
    assert "Nothing to remove" in lab.mayafleet("lab", "down", *options).output


def test_a_folder_that_up_did_not_make_stays(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.state.mkdir()
    (lab.state / "thesis.txt").write_text("years of work")
    down = lab.mayafleet("lab", "down", "--name", "maya1-down", *lab.options[2:])
    assert down.code == 0, down.output
    assert (lab.state / "thesis.txt").exists()


def test_a_second_lab_cannot_take_over_an_inventory(lab: Lab, tmp_path: Path) -> None:
    other = ("--name", "maya1-other", "--inventory", str(lab.inventory), "--state", str(tmp_path / "other"))
    before = everything()
    refused = lab.mayafleet("lab", "up", "--no-provision", *other)
    assert refused.code == 6
    assert str(lab.state) in "".join(refused.output.split())
    assert everything() == before


def test_an_unknown_host_is_named(lab: Lab) -> None:
    refused = lab.mayafleet("lab", "up", "--host", "lab-mars-1", *lab.options)
    assert refused.code == 2
    assert "lab-mars-1" in refused.output
    assert FIRST in refused.output
