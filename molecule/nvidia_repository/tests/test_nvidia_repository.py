"""A stand-in for NVIDIA's repository is known to apt, by its own key alone."""

from collections.abc import Iterator

import pytest
from conftest import Converge
from testinfra.host import Host

DESCRIPTION = "/opt/stub_repositories/nvidia.json"
BUILD = f"/opt/stub_repositories/stub_repository.py {DESCRIPTION}"


def test_apt_knows_its_packages(host: Host) -> None:
    assert "535.309.01-1ubuntu1" in host.check_output("apt-cache madison libnvidia-compute-535")


def test_it_is_trusted_by_its_own_key(host: Host) -> None:
    source = host.file("/etc/apt/sources.list.d/nvidia.sources").content_string
    assert "Signed-By: /etc/apt/keyrings/nvidia.asc" in source


def test_an_unknown_key_stops_the_role_and_the_one_that_is_trusted_stays(
    host: Host, converge: Converge
) -> None:
    before = host.file("/etc/apt/keyrings/nvidia.asc").sha256sum
    done = converge(nvidia_repository_key_fingerprint="0" * 40)
    assert done.returncode != 0
    assert "Nothing was installed" in " ".join(done.stdout.split())
    assert host.file("/etc/apt/keyrings/nvidia.asc").sha256sum == before
    assert not host.file("/etc/apt/keyrings/nvidia.asc.new").exists


@pytest.fixture
def another_key(host: Host, converge: Converge) -> Iterator[None]:
    """The repository is signed with another key from now on, as NVIDIA's was in April 2022."""
    other = """sed '1s/{/{"key": "next",/'"""
    host.check_output(f"mv {DESCRIPTION} /root/before && {other} /root/before > {DESCRIPTION} && {BUILD}")
    yield
    host.check_output(f"mv /root/before {DESCRIPTION} && {BUILD}")
    assert converge().returncode == 0


@pytest.mark.usefixtures("another_key")
def test_a_new_key_is_taken_when_its_fingerprint_is_set(host: Host, converge: Converge) -> None:
    assert host.run("apt-get update --error-on=any").rc != 0
    done = converge()  # with the fingerprint that the repository has now
    assert done.returncode == 0, done.stdout
    host.check_output("apt-get update --error-on=any")
