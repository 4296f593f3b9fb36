"""A driver and a kernel are changed on a host that serves: all the way, or not at all, and back.

The host is a container without a GPU, so nothing is rebooted and no module is loaded. Packages, speech
service, exporter and GPU are stand-ins (prepare.yml); playbooks, role and what apt does are real.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Converge, said
from testinfra.host import Host

Run = subprocess.CompletedProcess[str]
MARK = "/var/lib/maya1/drained.json"
FIRST, SECOND = "5.15.0-100-generic", "5.15.0-101-generic"
UNBUILDABLE = "/opt/stub_repositories/unbuildable"
V535, V580 = "535.309.01", "580.178.04"


def library(host: Host) -> str:
    """Version of the library that programs load."""
    return host.check_output("readlink -f /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").partition(".so.")[2]


def module(host: Host, kernel: str) -> str:
    return host.check_output(f"modinfo -k {kernel} -F version nvidia")


def record(host: Host) -> dict[str, Any]:
    return dict(json.loads(host.file("/etc/ansible/facts.d/maya1.fact").content_string))


def serves(host: Host) -> bool:
    """Not drained, and with its service and its exporter."""
    units = host.run("systemctl is-active maya1-tts maya1-gpu-exporter").stdout.split()
    return not host.file(MARK).exists and units == ["active", "active"]


@pytest.fixture
def upgrade(converge: Converge) -> Callable[..., Run]:
    return lambda **variables: converge(**variables)


@pytest.fixture
def rollback(converge: Converge) -> Callable[..., Run]:
    return lambda **variables: converge(playbook="rollback.yml", **variables)


@pytest.fixture
def unbuildable(host: Host) -> Iterator[Callable[[str, str], None]]:
    """Let a driver not build for a kernel."""

    def mark(driver: str, kernel: str) -> None:
        host.check_output(f"echo {driver} {kernel} > {UNBUILDABLE}")

    yield mark
    host.check_output(f"rm -f {UNBUILDABLE}")


# --- the host as it was converged: from 535 to 580 ----------------------------------------------------------


def test_the_host_has_the_bundles_driver_and_serves(host: Host) -> None:
    """Service and exporter hold a GPU, so they were stopped: a run does not go on while anybody does."""
    assert library(host) == V580
    assert module(host, FIRST) == V580
    assert serves(host)


def test_it_knows_where_it_came_from(host: Host) -> None:
    found = record(host)
    assert (found["bundle"], found["previous"]) == ("580", "535")
    assert found["previous_document"]["driver"]["version"] == V535


# --- back, and forth with what goes wrong on the way --------------------------------------------------------


@pytest.fixture
def no_archive(host: Host) -> Iterator[None]:
    """apt knows the kept packages and nothing else."""
    host.check_output(
        "cp -a /etc/apt /root/apt; cd /etc/apt; rm -f sources.list;"
        "ls -d sources.list.d/* | grep -v maya1-driver | xargs rm;"
        "apt-get -qq update; ! apt-cache policy nvidia-utils-535 | grep -q 127.0.0.1"
    )
    yield
    host.check_output("cp -a /root/apt/sources.list* /etc/apt; rm -r /root/apt; apt-get -qq update")


@pytest.mark.usefixtures("no_archive")
def test_the_way_back_needs_no_archive(host: Host, rollback: Callable[..., Run]) -> None:
    run = rollback()
    assert run.returncode == 0, run.stdout
    assert library(host) == V535
    assert module(host, FIRST) == V535
    assert serves(host)
    assert record(host)["bundle"] == "535"
    again = rollback()
    assert "changed=0" in again.stdout
    assert "is at bundle 535, driver 535.309.01, already" in said(again)


def test_who_else_holds_a_gpu_is_named_and_the_host_goes_on_serving(
    host: Host, upgrade: Callable[..., Run]
) -> None:
    host.check_output("systemd-run --unit intruder sh -c 'exec sleep 1234 3>>/dev/nvidia0'")
    run = upgrade()
    host.check_output("systemctl stop intruder")
    assert run.returncode != 0
    assert "held by sleep 1234 (process" in said(run)
    assert "is as it was before" in said(run)
    assert library(host) == V535
    assert serves(host)


def test_a_kernel_without_a_module_goes_again(
    host: Host, upgrade: Callable[..., Run], unbuildable: Callable[[str, str], None]
) -> None:
    unbuildable(V535, SECOND)
    run = upgrade(fleet_bundle="535", upgrade_kernel=True)
    assert run.returncode != 0
    assert f"{SECOND}, which boots next, has no NVIDIA module; wanted: {V535}" in said(run)
    assert "was not rebooted, and is as it was before" in said(run)
    assert host.check_output("ls /boot") == f"vmlinuz-{FIRST}"
    assert "100.97" in host.check_output("dpkg-query -W linux-image-generic")
    assert serves(host)


def test_a_new_kernel_comes_with_its_module_and_a_host_drained_by_an_operator_stays_so(
    host: Host, upgrade: Callable[..., Run]
) -> None:
    mark = json.dumps({"by": "me", "reason": "disk", "since": "today"})
    host.check_output(f"echo '{mark}' > {MARK}")
    run = upgrade(fleet_bundle="535", upgrade_kernel=True)
    drained = host.run(f"cat {MARK}").stdout
    again = upgrade(fleet_bundle="535", upgrade_kernel=True)
    host.check_output(f"rm -f {MARK}")
    assert run.returncode == 0, run.stdout
    assert drained.strip() == mark
    assert "stays drained, as it was before" in said(run)
    assert module(host, FIRST) == module(host, SECOND) == V535
    assert "101.98" in host.check_output("dpkg-query -W linux-image-generic")
    assert serves(host)
    assert "changed=0" in again.stdout


def test_a_driver_that_does_not_build_for_a_kernel_goes_again(
    host: Host, upgrade: Callable[..., Run], unbuildable: Callable[[str, str], None]
) -> None:
    unbuildable(V580, SECOND)
    run = upgrade()
    assert run.returncode != 0
    assert "Nothing was rebooted" in said(run)
    assert f"wanted: {V580}" in said(run)
    assert "is as it was before" in said(run)
    assert library(host) == V535
    assert module(host, FIRST) == module(host, SECOND) == V535
    assert record(host)["bundle"] == "535"
    assert serves(host)


def test_a_host_that_can_go_neither_way_is_left_drained_with_the_way_back(
    host: Host, upgrade: Callable[..., Run], rollback: Callable[..., Run]
) -> None:
    host.check_output("mv /opt/speech/readyz /root")
    run = upgrade(upgrade_ready_seconds=1)
    host.check_output("mv /root/readyz /opt/speech")
    assert run.returncode != 0
    assert "could not be put back as it was either" in said(run)
    assert "is left drained" in said(run)
    assert "mayafleet rollback lab-frankfurt-1" in said(run)
    assert json.loads(host.file(MARK).content_string)["reason"] == "driver upgrade"
    back = rollback()
    assert back.returncode == 0, back.stdout
    assert library(host) == V535
    assert serves(host)


# --- more hosts than one ------------------------------------------------------------------------------------


@pytest.fixture
def first(tmp_path: Path) -> Callable[..., Path]:
    """An inventory with a host of these variables."""

    def write(**variables: Any) -> Path:
        path = tmp_path / "first.yml"
        path.write_text(yaml.safe_dump({"gpu": {"hosts": {"lab-first-1": variables}}}))
        return path

    return write


def test_a_host_that_cannot_be_reached_ends_the_run(converge: Converge, first: Callable[..., Path]) -> None:
    run = converge(before=first(ansible_host="127.0.0.1", ansible_port=1, ansible_timeout=1))
    assert run.returncode != 0
    assert re.search(r"lab-first-1 : \S+ \S+ unreachable=1 ", said(run))
    assert "lab-frankfurt-1" not in said(run).partition("PLAY [Upgrade]")[2].partition("PLAY RECAP")[0]


def test_a_host_that_fails_ends_the_run(converge: Converge, first: Callable[..., Path], address: str) -> None:
    """It is the same machine by another name, and not fit for what its inventory says."""
    run = converge(before=first(ansible_host=address, hardware={"gpu_count": 8}))
    assert run.returncode != 0
    assert re.search(r"lab-first-1 : \S+ \S+ unreachable=0 failed=1 ", said(run))
    assert "lab-frankfurt-1" not in said(run).partition("PLAY [Upgrade]")[2].partition("PLAY RECAP")[0]
