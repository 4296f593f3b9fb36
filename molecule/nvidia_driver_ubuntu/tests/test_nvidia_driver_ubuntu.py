"""What the role asks of apt on Ubuntu: one version of everything, kept there, and traps refused.

The host is Debian and says it is Ubuntu; NVIDIA's and Ubuntu's packages are stand-ins (repository_*.yml).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Converge, said, upgrade_without_holds
from testinfra.host import Host

from mayafleet import bundles

SET = [
    "libnvidia-cfg1-535",
    "libnvidia-compute-535",
    "nvidia-compute-utils-535",
    "nvidia-dkms-535",
    "nvidia-kernel-common-535",
    "nvidia-kernel-source-535",
    "nvidia-utils-535",
]
AT_535 = dict.fromkeys(SET, "535.309.01-1ubuntu1")
KERNEL = "5.15.0-100-generic"


def installed(host: Host) -> dict[str, str]:
    """Packages of the driver that are installed, with their versions."""
    lines = host.check_output("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n' '*nvidia*'")
    return dict(line.split()[1:] for line in lines.splitlines() if line[1] == "i")


def own_bundle(folder: Path, version: str, source: str, package_version: str) -> str:
    """The file of a bundle like 535, with another driver of the branch."""
    bundle = bundles.load("535")
    bundle["driver"]["version"] = version
    for system in bundle["driver"]["systems"].values():
        system["package_version"] = f"{version}-1"
    bundle["driver"]["systems"]["ubuntu-22.04"] = {"source": source, "package_version": package_version}
    (folder / "mine.yml").write_text(yaml.safe_dump(bundle))
    return str(folder / "mine.yml")


@pytest.fixture
def moves_the_driver(converge: Converge) -> Iterator[None]:
    """For a test that installs another driver: the one of the scenario comes back after it."""
    yield
    run = converge()
    assert run.returncode == 0, run.stdout


# --- the host as it was converged ---------------------------------------------------------------------------


def test_the_set_has_one_version_and_is_held(host: Host) -> None:
    assert installed(host) == AT_535
    assert host.check_output("apt-mark showhold").split() == SET


def test_the_module_is_there_for_the_kernel(host: Host) -> None:
    assert host.check_output(f"modinfo -k {KERNEL} -F version nvidia") == "535.309.01"


def test_what_guides_left_is_gone_and_the_repository_is_trusted_by_its_own_key(host: Host) -> None:
    assert host.check_output("grep -rl 8102 /etc/apt") == "/etc/apt/sources.list.d/nvidia.sources"
    assert not host.file("/etc/apt/trusted.gpg.d/cuda.asc").exists
    assert not host.file("/etc/apt/preferences.d/cuda-repository-pin-600").exists
    source = host.file("/etc/apt/sources.list.d/nvidia.sources").content_string
    assert "Signed-By: /etc/apt/keyrings/nvidia.asc" in source
    # Debian's own keys stay.
    assert host.run("ls /etc/apt/trusted.gpg.d/debian-archive-bookworm-stable.*").rc == 0


def test_a_full_upgrade_leaves_the_driver_where_it_is(host: Host) -> None:
    policy = host.check_output("apt-cache policy nvidia-utils-535")
    assert "535.320.01-1ubuntu1" in policy
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get -y full-upgrade")
    assert installed(host) == AT_535


def test_it_would_stay_without_the_holds_too(host: Host) -> None:
    assert "nvidia" not in upgrade_without_holds(host, SET)


def test_packages_of_other_branches_cannot_slip_in(host: Host) -> None:
    assert "Candidate: (none)" in host.check_output("apt-cache policy nvidia-utils-580-server")


def test_automatic_upgrades_leave_driver_and_engine_and_take_the_rest(host: Host) -> None:
    """With neither pin nor hold, so that the fragment alone keeps the driver back."""
    pin = "/etc/apt/preferences.d/maya1-driver"
    host.check_output(
        f"apt-mark unhold {' '.join(SET)}; mv {pin} /root;"
        " apt-get install -qq -y --allow-downgrades libexample1=1.0 containerd=98"
    )
    host.check_output(
        'echo \'Unattended-Upgrade::Origins-Pattern { "origin=Ubuntu"; "origin=NVIDIA"; };\''
        " > /etc/apt/apt.conf.d/60test"
    )
    told = host.run("unattended-upgrade --dry-run --debug 2>&1").stdout
    host.check_output(
        f"rm /etc/apt/apt.conf.d/60test; mv /root/maya1-driver {pin}; apt-mark hold {' '.join(SET)}"
    )
    (upgrades,) = [line for line in told.splitlines() if "Packages that will be upgraded:" in line]
    assert "libexample1" in upgrades
    assert "nvidia" not in upgrades
    # It would stop the engine.
    assert "containerd" not in upgrades


def test_needrestart_lists_and_neither_asks_nor_restarts(host: Host) -> None:
    """As needrestart itself reads its settings, which are Perl."""
    script = 'our %nrconf; do "/etc/needrestart/needrestart.conf"; print $nrconf{restart}'
    assert host.check_output(f"perl -e '{script}'") == "l"


def test_the_host_says_what_it_runs(host: Host) -> None:
    record = json.loads(host.file("/etc/ansible/facts.d/maya1.fact").content_string)
    assert record["bundle"] == "535"
    assert record["versions"]["driver"] == "535.309.01"


# --- refused, with nothing changed --------------------------------------------------------------------------


def test_a_transitional_package_is_refused(host: Host, converge: Converge, tmp_path: Path) -> None:
    version = "535.309.01-0ubuntu0.22.04.2"
    run = converge(fleet_bundle=own_bundle(tmp_path, "535.309.01", "distribution", version))
    assert run.returncode != 0
    assert f"nvidia-dkms-535-server {version} is transitional and brings nvidia-dkms-580-server-open" in said(
        run
    )
    assert installed(host) == AT_535


def test_a_version_that_is_gone_is_named_with_those_that_there_are(
    host: Host, converge: Converge, tmp_path: Path
) -> None:
    run = converge(fleet_bundle=own_bundle(tmp_path, "535.300.01", "nvidia", "535.300.01-1ubuntu1"))
    assert run.returncode != 0
    assert "nvidia-utils-535 is not to be had at version 535.300.01-1ubuntu1, only at" in said(run)
    assert "535.320.01-1ubuntu1, 535.309.01-1ubuntu1, 535.288.01-0ubuntu1" in said(run)
    assert installed(host) == AT_535


def test_an_unknown_key_stops_the_role(host: Host, converge: Converge) -> None:
    run = converge(nvidia_repository_key_fingerprint="0" * 40)
    assert run.returncode != 0
    assert "Nothing was installed" in said(run)


def test_a_definition_that_shares_its_file_is_named_and_left_alone(host: Host, converge: Converge) -> None:
    path = "/etc/apt/sources.list.d/mixed.list"
    url = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/"
    host.check_output(f"printf 'deb {url} /\\ndeb http://example.invalid/ stable main\\n' > {path}")
    run = converge()
    there = host.file(path).exists
    host.check_output(f"rm {path}")
    assert run.returncode != 0
    assert f"{path} names NVIDIA's repository and others" in said(run)
    assert there


@pytest.mark.parametrize("trap", ["/usr/bin/nvidia-uninstall", "/snap/nvidia-core22"])
def test_a_second_driver_is_refused(host: Host, converge: Converge, trap: str) -> None:
    host.check_output(f"mkdir -p {trap}")
    run = converge()
    host.check_output(f"rmdir {trap}")
    assert run.returncode != 0
    assert f"{trap} is there, so a driver was installed by" in said(run)


# --- machines that this one is not: a folder that stands in for /sys ----------------------------------------


@pytest.fixture
def fake_sys(host: Host) -> Iterator[str]:
    yield "/root/sys"
    host.check_output("rm -rf /root/sys")


def device(host: Host, folder: str, address: str, device_id: str, kind: str) -> None:
    path = f"{folder}/bus/pci/devices/{address}"
    host.check_output(
        f"mkdir -p {path}; cd {path}; echo 0x10de > vendor; echo 0x{device_id} > device; echo {kind} > class"
    )


def test_a_gpu_that_the_branch_does_not_know_is_refused(
    host: Host, converge: Converge, fake_sys: str
) -> None:
    device(host, fake_sys, "0000:01:00.0", "2901", "0x030200")  # B200
    run = converge(nvidia_driver_sysfs=fake_sys)
    assert run.returncode != 0
    assert "driver 535 does not know Blackwell" in said(run)
    assert "fleet_bundle to 580" in said(run)


def secure_boot(host: Host, folder: str) -> None:
    path = f"{folder}/firmware/efi/efivars"
    host.check_output(f"mkdir -p {path}; printf '\\006\\000\\000\\000\\001' > {path}/SecureBoot-8be4df61")


def test_secure_boot_is_refused_where_modules_are_built_here(
    host: Host, converge: Converge, fake_sys: str
) -> None:
    secure_boot(host, fake_sys)
    run = converge(nvidia_driver_sysfs=fake_sys)
    assert run.returncode != 0
    assert "mokutil --import" in said(run)


def test_without_a_reboot_a_host_with_gpus_stops_after_the_driver(
    host: Host, converge: Converge, fake_sys: str
) -> None:
    device(host, fake_sys, "0000:01:00.0", "2236", "0x030200")  # A10
    run = converge(nvidia_driver_sysfs=fake_sys, gpu_present=True, nvidia_driver_reboot=False)
    assert run.returncode != 0
    assert "where none is loaded, and this run may not reboot it" in said(run)
    assert installed(host) == AT_535


@pytest.mark.usefixtures("moves_the_driver")
def test_the_fabric_manager_has_the_drivers_version(host: Host, converge: Converge, fake_sys: str) -> None:
    device(host, fake_sys, "0000:05:00.0", "22a3", "0x068000")
    run = converge(nvidia_driver_sysfs=fake_sys)
    assert run.returncode == 0, run.stdout
    # Not the newest, and of another revision than the rest.
    assert installed(host)["nvidia-fabricmanager-535"] == "535.309.01-1"
    assert "nvidia-fabricmanager-535" in host.check_output("apt-mark showhold").split()


# --- the driver moves ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("moves_the_driver")
def test_another_branch_moves_the_whole_set_and_leaves_nothing_behind(
    host: Host, converge: Converge, fake_sys: str
) -> None:
    secure_boot(host, fake_sys)  # Ubuntu signs the modules that it built
    run = converge(fleet_bundle="580", nvidia_driver_sysfs=fake_sys)
    assert run.returncode == 0, run.stdout
    now = installed(host)
    modules = f"linux-modules-nvidia-580-server-open-{KERNEL}"
    assert now.pop(modules) == "5.15.0-100.110"
    assert set(now.values()) == {"580.178.04-0ubuntu0.22.04.1"}
    assert not [name for name in now if "535" in name]
    assert not [name for name in now if "dkms" in name]
    assert host.check_output(f"modinfo -k {KERNEL} -F version nvidia") == "580.178.04"
    record = json.loads(host.file("/etc/ansible/facts.d/maya1.fact").content_string)
    assert (record["bundle"], record["previous"]) == ("580", "535")
    log = host.check_output(
        "grep -c 'Commandline: apt-get .*libnvidia-compute-580-server=' /var/log/apt/history.log"
    )
    assert log == "1"
    second = converge(fleet_bundle="580", nvidia_driver_sysfs=fake_sys)
    assert "changed=0" in second.stdout
