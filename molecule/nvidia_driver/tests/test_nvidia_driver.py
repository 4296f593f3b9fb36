"""Debian's real driver: one version of everything, a module built for the kernel, kept where it is.

The kernel is installed and never booted, since the host is a container; there is no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Converge, said
from testinfra.host import Host

from mayafleet import bundles

VERSION = "535.309.01"
PACKAGE_VERSION = "535.309.01-0+deb12u1"


@pytest.fixture(scope="module")
def kernel(host: Host) -> str:
    return host.check_output("basename $(ls -d /boot/vmlinuz-*) | cut -d- -f2-")


@pytest.mark.parametrize("package", ["nvidia-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi"])
def test_everything_has_the_bundles_version_and_is_held(host: Host, package: str) -> None:
    assert host.package(package).version == PACKAGE_VERSION
    assert package in host.check_output("apt-mark showhold").split()


def test_the_module_is_built_for_the_kernel(host: Host, kernel: str) -> None:
    assert host.check_output(f"modinfo -k {kernel} -F version nvidia-current") == VERSION
    assert f"{kernel}, x86_64: installed" in host.check_output("dkms status nvidia-current")


def test_nouveau_stays_out_of_kernel_and_initramfs(host: Host, kernel: str) -> None:
    assert "blacklist nouveau" in host.check_output("modprobe --showconfig")
    assert "maya1-nouveau.conf" in host.check_output(f"lsinitramfs /boot/initrd.img-{kernel}")


def test_archives_are_defined_once(host: Host) -> None:
    warnings = host.run("apt-get update").stderr
    assert "configured multiple times" not in warnings
    targets = host.check_output(
        "apt-get indextargets --format '$(RELEASE) $(COMPONENT)' 'Created-By: Packages'"
    )
    for component in ("main", "contrib", "non-free", "non-free-firmware"):
        assert f"bookworm-security {component}" in targets.splitlines()


def test_the_packages_are_kept_with_an_index(host: Host) -> None:
    policy = host.check_output("apt-cache policy nvidia-kernel-dkms")
    assert "file:/var/cache/maya1/driver" in policy
    index = host.file("/var/cache/maya1/driver/Packages").content_string
    assert f"Filename: ./{VERSION}/libcuda1_{PACKAGE_VERSION}_amd64.deb" in index


def test_the_host_says_what_it_runs(host: Host) -> None:
    record = json.loads(host.file("/etc/ansible/facts.d/maya1.fact").content_string)
    assert record["bundle"] == "535"
    assert record["versions"]["driver"] == VERSION


def test_no_kernel_came_along(host: Host) -> None:
    assert host.check_output("ls /boot/vmlinuz-* | wc -l") == "1"


def test_open_modules_that_the_archive_has_not_at_this_version_are_refused(
    converge: Converge, tmp_path: Path
) -> None:
    # Debian's open modules lag behind its driver.
    bundle = bundles.load("535")
    bundle["driver"]["module"] = "open"
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(bundle))
    run = converge(fleet_bundle=str(tmp_path / "mine.yml"))
    assert run.returncode != 0
    assert f"nvidia-open-kernel-dkms is not to be had at version {PACKAGE_VERSION}, only at 535." in said(run)


@pytest.fixture
def other_kernel(host: Host) -> Iterator[str]:
    """A kernel that no archive has headers for, as after an upgrade from elsewhere."""
    host.check_output("touch /boot/vmlinuz-6.1.999-test")
    yield "6.1.999-test"
    host.check_output("rm /boot/vmlinuz-6.1.999-test")


def test_a_kernel_without_headers_is_refused(converge: Converge, other_kernel: str) -> None:
    run = converge()
    assert run.returncode != 0
    assert f"No archive has linux-headers-{other_kernel}" in said(run)
    assert "Nothing was installed" in said(run)


@pytest.fixture
def lost_module(host: Host, kernel: str) -> Iterator[None]:
    """The module of the kernel is gone, as when DKMS failed to build it."""
    folder = f"/lib/modules/{kernel}/updates/dkms"
    host.check_output(f"mv {folder} /root/dkms && depmod {kernel}")
    yield
    host.check_output(f"mv /root/dkms {folder} && depmod {kernel}")


def test_a_kernel_without_the_module_stops_before_the_reboot(
    converge: Converge, lost_module: None, kernel: str
) -> None:
    run = converge()
    assert run.returncode != 0
    assert f"{kernel}, which boots next, has no NVIDIA module; wanted: {VERSION}" in said(run)
    assert f"dkms autoinstall -k {kernel}" in said(run)
