"""Four packages at one version, Docker's settings shared with others, and containers that keep their devices.

Packages and programs are stand-ins (repository.yml), and so is what systemd takes from containers
(lose_devices.sh). A device of the test host stands in for GPUs wherever a test says `gpu_present`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Converge, said, upgrade_without_holds
from testinfra.host import Host

PACKAGES = [
    "libnvidia-container-tools",
    "libnvidia-container1",
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
]
VERSION = "1.20.1-1"


def versions(host: Host) -> list[str]:
    return [host.package(name).version for name in PACKAGES]


def settings(host: Host) -> dict[str, object]:
    content: dict[str, object] = json.loads(host.file("/etc/docker/daemon.json").content_string)
    return content


def engine_with(host: Host, options: dict[str, object]) -> None:
    host.check_output(f"printf '%s' '{json.dumps(options)}' > /etc/docker/daemon.json")
    host.check_output("systemctl restart docker")


# --- the host as it was converged ---------------------------------------------------------------------------


def test_all_four_are_at_the_bundles_version_and_held(host: Host) -> None:
    assert versions(host) == [VERSION] * 4
    assert host.check_output("apt-mark showhold").split() == PACKAGES


def test_a_newer_version_is_not_taken(host: Host) -> None:
    assert "nvidia-container" not in upgrade_without_holds(host, PACKAGES)


def test_packages_of_before_are_gone(host: Host) -> None:
    for name in ("nvidia-docker2", "nvidia-container-runtime"):
        assert not host.package(name).is_installed
    assert not host.file("/etc/apt/sources.list.d/nvidia-docker.list").exists
    assert not host.file("/etc/apt/trusted.gpg.d/nvidia-docker.asc").exists


def test_settings_of_others_stay_and_the_engine_runs_with_ours(host: Host) -> None:
    found = settings(host)
    assert found["labels"] == ["owner=somebody-else"]
    assert found["live-restore"] is True
    assert found["exec-opts"] == ["native.cgroupdriver=cgroupfs"]
    runtimes = json.loads(host.check_output("docker info --format '{{json .Runtimes}}'"))
    assert runtimes["nvidia"]["path"] == "nvidia-container-runtime"
    assert host.check_output("docker info --format '{{.CgroupDriver}}'") == "cgroupfs"


def test_gpus_are_described_at_boot_and_when_modules_change(host: Host) -> None:
    assert host.service("nvidia-cdi-refresh.service").is_enabled
    changes = host.service("nvidia-cdi-refresh.path")
    assert changes.is_enabled
    assert changes.is_running


# --- refused ------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_there_is_refused_with_those_that_are(host: Host, converge: Converge) -> None:
    run = converge(nvidia_container_toolkit_package_version="1.18.0-1", check=True)
    assert run.returncode != 0
    assert "not to be had at version 1.18.0-1, only at 1.20.2-1, 1.20.1-1, 1.20.0-1, 1.19.1-1" in said(run)


def test_a_contradictory_cgroup_driver_is_refused(converge: Converge) -> None:
    run = converge(docker_daemon_options={"exec-opts": ["native.cgroupdriver=systemd"]}, check=True)
    assert run.returncode != 0
    assert "Put it into docker_daemon_options" in said(run)


# --- containers ---------------------------------------------------------------------------------------------


def test_a_partial_upgrade_is_put_right_in_one_step_and_containers_keep_their_devices(
    host: Host, converge: Converge
) -> None:
    host.check_output("apt-get --yes --allow-change-held-packages install libnvidia-container1=1.20.2-1")
    log = len(host.file("/var/log/apt/history.log").content_string)
    run = converge(gpu_present=True)
    # The role starts a container, has systemd read its units again, and asks for the devices once more.
    assert run.returncode == 0, run.stdout
    assert versions(host) == [VERSION] * 4
    assert host.file("/var/log/apt/history.log").content_string[log:].count("Commandline:") == 1
    assert host.check_output("docker ps --all --quiet; docker images --quiet") == ""


@pytest.fixture(scope="module")
def cgroups_by_systemd(host: Host) -> Iterator[None]:
    before = settings(host)
    engine_with(host, before | {"exec-opts": ["native.cgroupdriver=systemd"]})
    yield
    engine_with(host, before)


@pytest.mark.usefixtures("cgroups_by_systemd")
def test_a_container_that_loses_them_stops_the_role(converge: Converge) -> None:
    run = converge(gpu_present=True, nvidia_container_toolkit_cgroupfs=False)
    assert run.returncode != 0
    assert "failed after systemctl daemon-reload" in said(run)


@pytest.mark.usefixtures("cgroups_by_systemd")
def test_by_name_they_are_kept_with_any_cgroup_driver(host: Host, converge: Converge) -> None:
    run = converge(gpu_present=True, nvidia_container_toolkit_request="cdi")
    assert run.returncode == 0, run.stdout
    assert host.check_output("docker info --format '{{.CgroupDriver}}'") == "systemd"
    assert "/dev/nvidia0" in host.file("/var/run/cdi/nvidia.yaml").content_string
