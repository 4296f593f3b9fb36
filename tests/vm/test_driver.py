"""The real driver of Debian's archive, its module built by DKMS, on a kernel of its own. There is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mayafleet import bundles, project
from tests.vm.guest import Guest, make_root, recap

HERE = Path(__file__).parent
VERSION = bundles.load("535")["driver"]["version"]
PACKAGES = "libcuda1 nvidia-kernel-dkms nvidia-smi"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The driver is installed, and its module built, natively: emulated that takes ten times as long."""
    used = [project.root() / "roles", project.root() / "mayafleet/data"]
    root = make_root("driver", [HERE / "root.yml", HERE / "driver.yml"], used)
    with Guest(root, tmp_path_factory.mktemp("guest")) as guest:
        yield guest


def versions(guest: Guest) -> str:
    return guest.run(f"dpkg-query --show --showformat='${{Package}} ${{Version}}\\n' {PACKAGES}")


def test_the_kernel_has_the_module_at_the_bundle_s_version(guest: Guest) -> None:
    assert guest.run(f"modinfo -k {guest.kernel} -F version nvidia-current").strip() == VERSION
    assert guest.run("uname -r").strip() == guest.kernel


def test_the_kernel_takes_the_module_and_finds_no_gpu(guest: Guest) -> None:
    """That far a load goes here: the module fits the kernel, and ends for want of a GPU."""
    assert "No such device" in guest.run("modprobe nvidia-current 2>&1 || true")
    assert "NVRM: No NVIDIA GPU found" in guest.run("journalctl --dmesg --boot")


def test_nouveau_is_absent_and_kept_away_from_the_initramfs_on(guest: Guest) -> None:
    assert "nouveau" not in guest.run("lsmod")
    assert "blacklist nouveau" in guest.run("modprobe --showconfig").splitlines()
    assert "etc/modprobe.d/maya1-nouveau.conf" in guest.run(f"lsinitramfs /boot/initrd.img-{guest.kernel}")


def test_it_reboots_once_and_then_changes_nothing(guest: Guest) -> None:
    before = guest.wait()
    told = guest.play(HERE / "driver.yml", nvidia_driver_reboot_without_gpu=True)
    after = guest.wait()
    assert after != before
    assert "without a GPU neither the loaded module" in told
    assert recap(guest.play(HERE / "driver.yml"))["changed"] == 0
    assert guest.wait() == after


# A repository with newer versions of the driver, and of a package that has nothing to do with it.
NEWER = r"""
set -e
mkdir -p /opt/newer && cd /opt/newer
package() {
    mkdir -p $1/DEBIAN
    printf 'Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: test\nDescription: stand-in\n' $1 $2 \
        > $1/DEBIAN/control
    dpkg-deb --build $1 $1-$2.deb >/dev/null
}
package ordinary 1
dpkg --install ordinary-1.deb >/dev/null
for name in ordinary libcuda1 nvidia-kernel-dkms nvidia-smi; do
    package $name 999.1
    cat $name/DEBIAN/control
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' $name-999.1.deb $(stat -c %s $name-999.1.deb) \
        $(sha256sum $name-999.1.deb | cut -d' ' -f1)
done > Packages
echo 'deb [trusted=yes] file:/opt/newer ./' > /etc/apt/sources.list.d/newer.list
only="-o Dir::Etc::sourcelist=sources.list.d/newer.list -o Dir::Etc::sourceparts=-"
apt-get -qq $only -o APT::Get::List-Cleanup=0 update
"""


def test_a_full_upgrade_leaves_the_driver_where_it_was(guest: Guest) -> None:
    before = versions(guest)
    guest.run(NEWER)
    assert "999.1" in guest.run("apt-cache madison nvidia-smi")
    guest.run("DEBIAN_FRONTEND=noninteractive apt-get -qq --yes full-upgrade")
    assert versions(guest) == before
    assert guest.run("dpkg-query --show --showformat='${Version}' ordinary") == "999.1"


def test_a_new_kernel_without_headers_is_caught_before_a_reboot(guest: Guest) -> None:
    guest.play(HERE / "kernels.yml")
    before = guest.wait()
    # The newest kernel of the archive, whose package lies in apt's cache.
    guest.run(
        "DEBIAN_FRONTEND=noninteractive apt-get --yes --no-download --no-install-recommends install "
        "$(ls /var/cache/apt/archives/linux-image-* | sort -V | tail -1)",
        timeout=1200,
    )
    newer = guest.run("ls /boot/vmlinuz-* | sort -V | tail -1").strip().removeprefix("/boot/vmlinuz-")
    assert newer != guest.kernel
    with pytest.raises(AssertionError) as stopped:
        guest.play(HERE / "kernels.yml")
    told = " ".join(str(stopped.value).split())
    assert "Nothing was rebooted" in told
    assert f"{newer}, which boots next, has no NVIDIA module" in told
    assert f"linux-headers-{newer}" in told
    assert guest.wait() == before
