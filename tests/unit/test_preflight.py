"""The judgement: each check both ways, on a host that is otherwise fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayafleet import bundles, preflight
from mayafleet.checks import Check, Level, worst
from mayafleet.errors import FleetError
from mayafleet.tally import Failure

BUNDLE = bundles.load("580")
VERSION = BUNDLE["driver"]["version"]

# What module host_probe says of a good host, see tests/unit/test_host_probe.py.
FIT: dict[str, Any] = {
    "system": {"id": "ubuntu", "version": "24.04"},
    "virtualisation": "none",
    "container": False,
    "cgroup": 2,
    "vcpus": 16,
    "memory_gb": 62.7,
    "disk": {
        "path": "/var/lib", "size_gb": 960.0, "free_gb": 700.0,
        "disks": ["nvme0n1", "nvme1n1"], "raid": "raid0", "nvme": True, "rotational": False,
    },
    "network": {"interface": "eno1", "mbit": 10000},
    "clock": {"synchronised": True, "offset_seconds": 0.0002},
    "kernel": {"running": "6.8.0-90-generic", "installed": ["6.8.0-90-generic"], "next": "6.8.0-90-generic",
               "module": VERSION, "headers": True},
    "reboot_required": False,
    "gpus": [{"address": "0000:01:00.0", "device": "0x2236"}],
    "nvswitches": 0,
    "secure_boot": {"enabled": False, "key_enrolled": None},
    "nouveau": {"loaded": False, "blacklisted": True},
    "driver": {"module": VERSION, "library": VERSION},
    "packages": {"lock": None, "broken": [], "upgrading": False, "nvidia_docker2": False,
                 "fabric_manager": None},
    "snap_docker": False,
}  # fmt: skip
HARDWARE = {
    "gpu": "NVIDIA A10",
    "gpu_count": 1,
    "vcpus": 16,
    "memory_gb": 64,
    "disk": "nvme",
    "network_gbit": 10,
}
RTT = {"ms": 7.5, "source": "desk", "target": "203.0.113.11:22"}
HOLDER = {"lock": "/var/lib/dpkg/lock-frontend", "pid": 812, "command": "apt-get upgrade"}


def changed(path: str, value: Any, of: Mapping[str, Any] = FIT) -> dict[str, Any]:
    """The fit host, with one fact another; a path like driver.module leads to it."""
    host = copy.deepcopy(dict(of))
    *folders, name = path.split(".")
    place = host
    for folder in folders:
        place = place[int(folder)] if isinstance(place, list) else place[folder]
    place[name] = value
    return host


def judge(host: Mapping[str, Any] = FIT, **other: Any) -> dict[str, Check]:
    given: dict[str, Any] = {
        "hardware": HARDWARE,
        "bundle": BUNDLE,
        "profile": "realtime",
        "rtt": RTT,
    } | other
    return {check.id: check for check in preflight.judge(host, **given)}


def test_a_fit_host_passes_every_check() -> None:
    assert {name: check.level for name, check in judge().items()} == dict.fromkeys(
        preflight.CHECKS, Level.PASS
    )
    assert worst(judge().values()) is Level.PASS


BROKEN = [
    # check, level, fact, its value, what is said of it
    ("system", Level.FAIL, "system.version", "26.04", "ubuntu-26.04"),
    ("virtualisation", Level.FAIL, "container", True, "a container"),
    ("cgroup", Level.WARN, "cgroup", 1, "systemd.unified_cgroup_hierarchy=0"),
    ("vcpus", Level.FAIL, "vcpus", 15, "16 vCPUs, as hardware.vcpus says"),
    ("memory", Level.FAIL, "memory_gb", 31.2, "64 GB, as hardware.memory_gb says"),
    ("memory", Level.NOT_RUN, "memory_gb", None, "does not tell"),
    ("disk_space", Level.FAIL, "disk.free_gb", 4.9, "4.9 of 960 GB free at /var/lib"),
    ("disk_kind", Level.WARN, "disk.nvme", False, "NVMe"),
    ("disk_kind", Level.NOT_RUN, "disk.disks", [], "lies on no disk"),
    ("network", Level.WARN, "network.mbit", 1000, "1 Gbit/s on eno1"),
    ("network", Level.NOT_RUN, "network.mbit", None, "eno1: no link speed"),
    ("clock", Level.WARN, "clock.synchronised", False, "not synchronised"),
    ("clock", Level.WARN, "clock.offset_seconds", -0.7, "0.700 s off"),
    ("clock", Level.NOT_RUN, "clock.synchronised", None, "does not tell"),
    ("package_lock", Level.FAIL, "packages.lock", HOLDER, "held by process 812 (apt-get upgrade)"),
    ("package_state", Level.NOT_RUN, "packages.lock", HOLDER, "being changed right now"),
    ("package_state", Level.FAIL, "packages.broken", ["libc6", "dkms"], "dpkg --configure -a"),
    ("upgrades", Level.FAIL, "packages.upgrading", True, "Wait until it is done"),
    ("snap_docker", Level.FAIL, "snap_docker", True, "snap remove docker"),
    ("nvidia_docker2", Level.WARN, "packages.nvidia_docker2", True, "nvidia-container-toolkit alone"),
    ("kernel", Level.WARN, "kernel.next", "6.8.0-101-generic", "6.8.0-101-generic boots next"),
    ("kernel", Level.WARN, "reboot_required", True, "packages ask for a reboot"),
    ("gpu_count", Level.FAIL, "gpus", [], "1, as hardware.gpu_count says"),
    ("gpu_count", Level.FAIL, "gpus", FIT["gpus"] * 2, "Correct hardware.gpu_count"),
    ("gpu_model", Level.FAIL, "gpus.0.device", "0x20b2", "A10, as hardware.gpu says"),
    ("gpu_model", Level.WARN, "gpus.0.device", "0xffff", "unknown device 0xffff"),
    ("kernel_module", Level.FAIL, "kernel.module", None, "dkms autoinstall -k 6.8.0-90-generic"),
    ("driver", Level.FAIL, "driver.library", "590.44.01", f"module {VERSION}, library 590.44.01"),
    ("driver", Level.WARN, "driver.module", "580.105.08", "installs and reboots"),
    ("driver", Level.WARN, "driver.module", None, "module not loaded"),
    ("fabric_manager", Level.WARN, "nvswitches", 6, "6 NVSwitch, fabric manager not installed"),
    ("nouveau", Level.WARN, "nouveau.loaded", True, "blacklists it"),
    ("secure_boot", Level.NOT_RUN, "secure_boot.enabled", None, "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "level", "fact", "value", "said"), BROKEN)
def test_what_is_wrong_is_named(name: str, level: Level, fact: str, value: Any, said: str) -> None:
    check = judge(changed(fact, value))[name]
    assert check.level is level
    assert said in str(check)
    assert bool(check.mend) == (level in (Level.WARN, Level.FAIL)), "what is wrong says how to mend it"


def test_every_check_is_broken_above_or_has_a_test_of_its_own() -> None:
    assert set(preflight.CHECKS) - {row[0] for row in BROKEN} == {
        "round_trip",
        "bundle",
        "gpu_bundle",
    }


def test_the_round_trip_is_told_with_where_it_was_measured_and_only_warns() -> None:
    assert judge()["round_trip"].found == "7.5 ms from desk to 203.0.113.11:22"
    far = judge(rtt={**RTT, "ms": 20.5})["round_trip"]
    assert (far.level, far.wanted) == (Level.WARN, "under 20 ms to the listeners, for profile realtime")
    assert judge(rtt={**RTT, "ms": 20.5}, profile="batch")["round_trip"].level is Level.PASS
    assert judge(rtt={**RTT, "ms": None})["round_trip"].level is Level.NOT_RUN
    assert judge(rtt={})["round_trip"].level is Level.NOT_RUN


@pytest.mark.parametrize(
    ("profile", "fact", "value", "check", "wanted"),
    [
        ("realtime", "vcpus", 7, "vcpus", "8 vCPUs"),
        ("batch", "vcpus", 15, "vcpus", "16 vCPUs"),
        ("realtime", "memory_gb", 15.6, "memory", "32 GB"),
        ("training", "memory_gb", 62.7, "memory", "128 GB"),
        ("realtime", "network.mbit", 100, "network", "1 Gbit/s"),
        ("batch", "disk.nvme", False, "disk_kind", "NVMe"),
        ("training", "disk.raid", None, "disk_kind", "a RAID of NVMe disks"),
    ],
)
def test_a_host_below_its_profile_is_warned_of(
    profile: str, fact: str, value: Any, check: str, wanted: str
) -> None:
    found = judge(changed(fact, value), hardware={"gpu_count": 1}, profile=profile)[check]
    assert found.level is Level.WARN
    assert found.wanted.startswith(wanted)
    assert judge(changed(fact, value), hardware={"gpu_count": 1}, profile="")[check].level is Level.PASS


def test_memory_as_sold_is_a_little_more_than_what_the_kernel_sees() -> None:
    assert judge(changed("memory_gb", 58.0))["memory"].level is Level.PASS
    assert judge(changed("memory_gb", 57.0))["memory"].level is Level.FAIL


def test_a_virtual_disk_does_not_tell_what_it_lies_on() -> None:
    virtual = changed("virtualisation", "kvm", changed("disk.nvme", False))
    assert judge(virtual)["disk_kind"].level is Level.NOT_RUN


def test_without_a_gpu_its_checks_are_not_run() -> None:
    none = judge(changed("gpus", []), hardware={"gpu_count": 0}, profile="")
    assert none["gpu_count"].level is Level.PASS
    for name in preflight.GPU_CHECKS:
        assert none[name].level is Level.NOT_RUN, name
    assert judge(changed("gpus", []), hardware={})["gpu_count"].level is Level.NOT_RUN


def test_a_gpu_that_the_inventory_does_not_know_is_warned_of() -> None:
    assert judge(hardware={})["gpu_count"].level is Level.WARN


def test_a_container_is_fine_without_gpus() -> None:
    container = changed("container", True, changed("gpus", []))
    assert judge(container, hardware={"gpu_count": 0})["virtualisation"].level is Level.PASS
    # Its kernel and clock are those of the machine around it.
    assert {judge(container)[name].level for name in ("cgroup", "clock")} == {Level.NOT_RUN}


# --- GPUs and bundle ----------------------------------------------------------------------------------------

BLACKWELL, VOLTA = "0x2b85", "0x1db6"


def with_gpus(*devices: str) -> dict[str, Any]:
    return changed(
        "gpus", [{"address": f"0000:0{n}:00.0", "device": device} for n, device in enumerate(devices)]
    )


def test_blackwell_is_refused_with_bundle_535_and_sent_to_580() -> None:
    check = judge(with_gpus(BLACKWELL), bundle=bundles.load("535"))["gpu_bundle"]
    assert check.level is Level.FAIL
    assert "Blackwell" in check.found
    assert "580" in check.mend
    assert judge(with_gpus(BLACKWELL))["gpu_bundle"].level is Level.PASS


def test_volta_and_blackwell_in_one_host_are_refused() -> None:
    check = judge(with_gpus(VOLTA, BLACKWELL))["gpu_bundle"]
    assert check.level is Level.FAIL
    assert "open" in check.found


def test_a_bundle_past_its_end_of_life_is_warned_of_with_its_successor() -> None:
    check = judge(bundle=bundles.load("535"))["bundle"]
    assert check.level is Level.WARN
    assert "535 reached its end of life in 2026-06" in check.found
    assert "bundle 580" in check.mend


def test_a_contradictory_bundle_fails() -> None:
    bundle = copy.deepcopy(BUNDLE)
    bundle["cuda"]["version"] = "14.0"
    assert judge(bundle=bundle)["bundle"].level is Level.FAIL


def test_without_a_bundle_nothing_is_compared_with_it() -> None:
    none = judge(bundle={})
    assert {none[name].level for name in ("bundle", "gpu_bundle")} == {Level.NOT_RUN}


def test_a_gpu_that_the_profile_was_not_sized_with_is_warned_of() -> None:
    check = judge(profile="training", hardware={"gpu_count": 1})["gpu_model"]
    assert check.level is Level.WARN
    assert check.wanted.startswith("A100 or Tesla V100, for profile training")


def test_a_gpu_name_that_the_table_does_not_know_is_one_clear_error() -> None:
    with pytest.raises(FleetError, match="A1000000"):
        judge(hardware={"gpu": "NVIDIA A1000000"})


# --- drivers ------------------------------------------------------------------------------------------------


def fresh() -> dict[str, Any]:
    """A host whose GPU nobody set up yet."""
    bare = changed("driver", {"module": None, "library": None})
    return changed("kernel.module", None, bare)


def test_a_fresh_host_needs_no_driver_yet() -> None:
    checks = judge(changed("kernel.headers", False, fresh()))
    assert {checks[name].level for name in ("driver", "kernel_module")} == {Level.PASS}


def test_a_kernel_without_headers_names_their_package() -> None:
    coming = changed("kernel.next", "6.8.0-101-generic", changed("kernel.headers", False))
    check = judge(changed("kernel.module", None, coming))["kernel_module"]
    assert check.level is Level.FAIL
    assert "Install linux-headers-6.8.0-101-generic" in check.mend


def test_a_library_that_the_bundle_wants_is_a_run_that_did_not_reboot_yet() -> None:
    pending = changed("driver", {"module": "525.60.13", "library": VERSION})
    assert judge(pending)["driver"].level is Level.WARN


def test_another_driver_than_the_bundles_is_warned_of() -> None:
    other = changed("driver", {"module": "590.44.01", "library": "590.44.01"})
    assert judge(other)["driver"].level is Level.WARN
    assert judge(other, bundle={})["driver"].level is Level.PASS


@pytest.mark.parametrize(
    ("manager", "level"),
    [(VERSION, Level.PASS), ("590.44.01", Level.FAIL), (None, Level.WARN)],
)
def test_the_fabric_manager_is_the_drivers(manager: str | None, level: Level) -> None:
    switched = changed("packages.fabric_manager", manager, changed("nvswitches", 6))
    assert judge(switched)["fabric_manager"].level is level
    # Driver and manager agree, and are both about to move to the bundle's version.
    old = changed("driver", {"module": "525.60.13", "library": "525.60.13"}, switched)
    old["packages"]["fabric_manager"] = "525.60.13"
    assert judge(old)["fabric_manager"].level is Level.WARN


@pytest.mark.parametrize(
    ("key_enrolled", "driver", "system", "source", "level"),
    [
        (False, None, "ubuntu", "nvidia", Level.FAIL),
        (False, None, "debian", "distribution", Level.FAIL),
        (True, None, "ubuntu", "nvidia", Level.PASS),
        (False, VERSION, "ubuntu", "nvidia", Level.PASS),
        (False, None, "ubuntu", "distribution", Level.PASS),
    ],
)
def test_secure_boot_wants_a_module_that_the_firmware_trusts(
    key_enrolled: bool, driver: str | None, system: str, source: str, level: Level
) -> None:
    host = changed("secure_boot", {"enabled": True, "key_enrolled": key_enrolled}, fresh())
    host["driver"]["module"] = driver
    host["system"] = {"id": system, "version": "24.04" if system == "ubuntu" else "12"}
    bundle = copy.deepcopy(BUNDLE)
    for packages in bundle["driver"]["systems"].values():
        packages["source"] = source
    check = judge(host, bundle=bundle)["secure_boot"]
    assert check.level is level
    assert ("mokutil --import" in check.mend) == (level is Level.FAIL)


# --- settings -----------------------------------------------------------------------------------------------


def test_an_accepted_failure_warns_and_says_so() -> None:
    check = judge(changed("vcpus", 4), accept=["vcpus"])["vcpus"]
    assert check.level is Level.WARN
    assert check.mend.startswith("Accepted by preflight_accept. ")


@pytest.mark.parametrize(
    ("given", "message", "next_step"),
    [
        ({"profile": "huge"}, "no sizing profile 'huge'", "realtime, batch, training"),
        ({"accept": ["vcpu"]}, "names vcpu, which is no check", "vcpus"),
        ({"hardware": {"gpu_count": "two"}}, "hardware.gpu_count is 'two'", "host_vars"),
        ({"hardware": {"vcpus": True}}, "hardware.vcpus is True", "host_vars"),
    ],
)
def test_wrong_settings_are_one_clear_error(given: dict[str, Any], message: str, next_step: str) -> None:
    with pytest.raises(FleetError) as refused:
        judge(**given)
    assert message in refused.value.message
    assert next_step in refused.value.next_step


def test_example_profiles_are_profiles() -> None:
    """A group profile_NAME of the example sizes its hosts by the profile of that name."""
    folder = Path(__file__).parents[2] / "inventories" / "example" / "group_vars"
    sizing = {path.stem: yaml.safe_load(path.read_text())["sizing"] for path in folder.glob("profile_*.yml")}
    assert sizing == {
        f"profile_{name}": name for name in yaml.safe_load(preflight.PROFILES.read_text())["profiles"]
    }


def test_the_documentation_lists_every_check() -> None:
    document = (Path(__file__).parents[2] / "docs" / "preflight.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|", document.partition("## Checks")[2], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert listed == [preflight.REACHABLE, preflight.PROBE, *preflight.CHECKS]


# --- hosts that were not judged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "mend"),
    [
        ("ssh: connect to host 203.0.113.9 port 22: Connection refused", "sshd runs"),
        ("ssh: connect to host 203.0.113.9 port 22: Connection timed out", "provider's firewall"),
        ("ssh: connect to host 203.0.113.9 port 22: No route to host", "the machine is on"),
        ("ops@203.0.113.9: Permission denied (publickey).", "Check ansible_user"),
        ("Host key verification failed.", "known_hosts"),
        ("ssh: Could not resolve hostname fra: Name or service not known", "Correct ansible_host"),
        ("something new", "Mend what this says"),
    ],
)
def test_an_unreachable_host_has_a_check_with_the_way_to_mend(message: str, mend: str) -> None:
    failure = Failure("fra", "facts", "Gathering Facts", message, unreachable=True)
    (check,) = preflight.of_run(["fra"], {}, [failure])["fra"]
    assert (check.id, check.level, check.found) == ("reachable", Level.FAIL, message)
    assert mend in check.mend


@pytest.mark.parametrize(
    ("message", "mend"),
    [("Missing sudo password", "sudo without a password"), ("/bin/sh: python3: not found", "python3")],
)
def test_a_host_that_cannot_be_probed_says_why(message: str, mend: str) -> None:
    failure = Failure("fra", "facts", "Gathering Facts", message)
    reached, probe = preflight.of_run(["fra"], {}, [failure])["fra"]
    assert reached.level is Level.PASS
    assert (probe.id, probe.level) == ("probe", Level.FAIL)
    assert mend in probe.mend


def test_a_run_that_breaks_after_its_judgement_does_not_pass() -> None:
    passed = [Check("system", Level.PASS, "debian-12")]
    broken = preflight.of_run(["fra"], {"fra": passed}, [Failure("fra", "preflight", "Report", "a bug")])[
        "fra"
    ]
    assert worst(broken) is Level.FAIL
    assert worst(preflight.of_run(["fra"], {"fra": passed}, [])["fra"]) is Level.PASS
    assert worst(preflight.of_run(["fra"], {}, [])["fra"]) is Level.FAIL
