"""Whether a host is fit for what the inventory wants of it: a judgement of what role preflight found there.

Pure functions. What a host is comes from the role's probe; what it should be from the inventory (`hardware`),
the bundle and the sizing profile. A check fails where a run must not go on, or the machine is not as the
inventory describes it; it warns where the host works, or a run mends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mayafleet import compat
from mayafleet.bundles import SYSTEMS, Bundle
from mayafleet.checks import Check, Level, worst
from mayafleet.compat import Finding
from mayafleet.errors import ExitCode, FleetError
from mayafleet.tally import Failure

PROFILES = Path(__file__).parent / "data" / "profiles.yml"
# Of the memory that a provider sells, firmware and kernel keep some; and some count in 10^9 bytes.
MEMORY_TOLERANCE = 0.9
CLOCK_OFFSET_SECONDS = 0.5


@dataclass(frozen=True)
class Situation:
    """All that a check may look at."""

    host: Mapping[str, Any]
    hardware: Mapping[str, Any]
    bundle: Bundle
    """Empty where none is chosen."""
    profile: Mapping[str, Any]
    rtt: Mapping[str, Any]

    @property
    def system(self) -> str:
        """Distribution and version as bundles name them, such as ubuntu-24.04."""
        return "-".join(str(part) for part in (self.host["system"]["id"], self.host["system"]["version"]))

    @property
    def driver_wanted(self) -> str | None:
        return str(self.bundle["driver"]["version"]) if self.bundle else None

    def stated(self, field: str) -> float | None:
        """A number that the inventory gives for the host's hardware."""
        value = self.hardware.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise FleetError(
                f"hardware.{field} is {value!r}, which is no number.",
                "Correct it in the host's host_vars.",
                ExitCode.USAGE,
            )
        return value


def judge(
    host: Mapping[str, Any],
    *,
    hardware: Mapping[str, Any] | None = None,
    bundle: Bundle | None = None,
    profile: str = "",
    rtt: Mapping[str, Any] | None = None,
    accept: Collection[str] = (),
) -> list[Check]:
    """All checks of a host, in a fixed order.

    host is what module host_probe returns, rtt what lookup round_trip does. A check that fails and is named
    in accept becomes a warning. FleetError tells of an unknown profile or check, and of no number where one
    is asked for.
    """
    if unknown := sorted(set(accept) - set(CHECKS)):
        raise FleetError(
            f"preflight_accept names {', '.join(unknown)}, which is no check.",
            f"Checks are: {', '.join(CHECKS)}.",
            ExitCode.USAGE,
        )
    situation = Situation(host, hardware or {}, bundle or {}, _profile(profile), rtt or {})
    checks = []
    for name, look in CHECKS.items():
        if name in GPU_CHECKS and not host["gpus"]:
            check = _not_run("no NVIDIA GPU on the PCI bus")
        else:
            check = look(situation)
        if check.level is Level.FAIL and name in accept:
            check = replace(check, level=Level.WARN, mend=f"Accepted by preflight_accept. {check.mend}")
        checks.append(replace(check, id=name))
    return checks


# --- how a check goes; `judge` gives it its name ------------------------------------------------------------


def _passed(found: str, wanted: str = "") -> Check:
    return Check("", Level.PASS, found, wanted)


def _not_run(found: str) -> Check:
    return Check("", Level.NOT_RUN, found)


def _warn(found: str, wanted: str, mend: str) -> Check:
    return Check("", Level.WARN, found, wanted, mend)


def _fail(found: str, wanted: str, mend: str) -> Check:
    return Check("", Level.FAIL, found, wanted, mend)


# --- the machine --------------------------------------------------------------------------------------------


def _system(s: Situation) -> Check:
    if s.system not in SYSTEMS:
        return _fail(s.system, f"one of {', '.join(SYSTEMS)}", "Install the host anew with one of these.")
    return _passed(s.system)


def _bundle(s: Situation) -> Check:
    if not s.bundle:
        return _not_run("no bundle is chosen")
    check = _of_findings(compat.judge_bundle(s.bundle), "parts that go together and are supported")
    return check if check.level is not Level.PASS else _passed(f"{s.bundle['name']}: {s.bundle['summary']}")


def _virtualisation(s: Situation) -> Check:
    kind = s.host["virtualisation"]
    if s.host["container"] and s.stated("gpu_count"):
        return _fail(
            f"a container ({kind})",
            "a machine of its own, which can load the NVIDIA module",
            "Rent a virtual machine or bare metal, or set hardware.gpu_count to 0 in host_vars.",
        )
    return _passed(f"container ({kind})" if s.host["container"] else "bare metal" if kind == "none" else kind)


def _cgroup(s: Situation) -> Check:
    version = f"version {s.host['cgroup']}"
    if s.host["container"]:
        return _not_run(f"{version}: the choice of the machine around this container")
    if s.host["cgroup"] != 2:
        return _warn(
            version,
            "version 2, which the supported systems boot with",
            "Remove systemd.unified_cgroup_hierarchy=0 from GRUB_CMDLINE_LINUX, run update-grub, reboot.",
        )
    return _passed(version)


def _vcpus(s: Situation) -> Check:
    return _amount(float(s.host["vcpus"]), s.stated("vcpus"), s.profile, "vcpus", "vCPUs")


def _memory(s: Situation) -> Check:
    memory = s.host["memory_gb"]
    if memory is None:
        return _not_run("the kernel does not tell")
    return _amount(memory, s.stated("memory_gb"), s.profile, "memory_gb", "GB", MEMORY_TOLERANCE)


def _amount(
    found: float,
    stated: float | None,
    profile: Mapping[str, Any],
    field: str,
    unit: str,
    tolerance: float = 1.0,
) -> Check:
    """Less than the inventory states fails, as the machine is another one; below the profile warns."""
    told = f"{found:g} {unit}"
    if stated is not None and found < stated * tolerance:
        return _fail(
            told,
            f"{stated:g} {unit}, as hardware.{field} says",
            f"Ask the provider for the machine that was rented, or correct hardware.{field} in host_vars.",
        )
    least = profile.get(field)
    if least is not None and found < least * tolerance:
        return _warn(told, *_profile_wants(profile, f"{least:g} {unit}"))
    return _passed(told)


def _profile_wants(profile: Mapping[str, Any], what: str) -> tuple[str, str]:
    """What is wanted, and how to mend it, where a host is smaller than its profile."""
    name = profile["name"]
    return (
        f"{what}, for profile {name}",
        f"Rent a larger machine, or move the host out of group profile_{name}.",
    )


def _disk_space(s: Situation) -> Check:
    disk, least = s.host["disk"], _data()["minimum"]["disk_free_gb"]
    told = f"{disk['free_gb']:g} of {disk['size_gb']:g} GB free at {disk['path']}"
    if disk["free_gb"] < least:
        return _fail(
            told,
            f"{least:g} GB free",
            "Free space (`docker system prune`, `apt-get clean`) or enlarge the disk.",
        )
    return _passed(told)


def _disk_kind(s: Situation) -> Check:
    disk = s.host["disk"]
    if not disk["disks"]:
        return _not_run(f"{disk['path']} lies on no disk that shows its kind")
    raid = f" in {disk['raid']}" if disk["raid"] else ""
    kind = "NVMe" if disk["nvme"] else "rotating" if disk["rotational"] else "SSD"
    told = f"{kind} ({', '.join(disk['disks'])}){raid}"
    wants_raid = s.profile.get("disk") == "nvme-raid"
    wants_nvme = wants_raid or "nvme" in (s.profile.get("disk"), s.hardware.get("disk"))
    if wants_nvme and not disk["nvme"]:
        if s.host["virtualisation"] != "none":
            return _not_run(f"{', '.join(disk['disks'])} is virtual and hides what it lies on")
        return _warn(
            told, "NVMe", "Move the models to an NVMe disk (inference_model_dir), or correct host_vars."
        )
    if wants_raid and not disk["raid"]:
        return _warn(told, *_profile_wants(s.profile, "a RAID of NVMe disks"))
    return _passed(told)


def _network(s: Situation) -> Check:
    interface, mbit = s.host["network"]["interface"], s.host["network"]["mbit"]
    if mbit is None:
        return _not_run(f"{interface or 'no default route'}: no link speed to read")
    told = f"{mbit / 1000:g} Gbit/s on {interface}"
    wanted = max(s.stated("network_gbit") or 0, s.profile.get("network_gbit") or 0)
    if mbit < wanted * 1000:
        return _warn(
            told,
            f"{wanted:g} Gbit/s",
            "Look at cable, port and autonegotiation (`ethtool`), or ask the provider.",
        )
    return _passed(told)


def _round_trip(s: Situation) -> Check:
    milliseconds, way = s.rtt.get("ms"), f"from {s.rtt.get('source')} to {s.rtt.get('target')}"
    if milliseconds is None:
        return _not_run("no direct TCP connection from the controller to the host's SSH port")
    told, most = f"{milliseconds:.1f} ms {way}", s.profile.get("rtt_ms")
    if most is not None and milliseconds > most:
        return _warn(
            told,
            f"under {most:g} ms to the listeners, for profile {s.profile['name']}",
            "Choose a region nearer to the listeners; this was measured from here, which may be elsewhere.",
        )
    return _passed(told)


def _clock(s: Situation) -> Check:
    clock = s.host["clock"]
    if s.host["container"]:
        return _not_run("the clock is that of the machine around this container")
    if clock["synchronised"] is None:
        return _not_run("the kernel does not tell")
    offset = clock["offset_seconds"]
    told = "synchronised" if clock["synchronised"] else "not synchronised"
    told += f", {abs(offset):.3f} s off" if offset is not None else ""
    if not clock["synchronised"] or abs(offset or 0.0) > CLOCK_OFFSET_SECONDS:
        return _warn(
            told,
            f"synchronised within {CLOCK_OFFSET_SECONDS} s; tokens and certificates depend on it",
            "Run `timedatectl set-ntp true`, and let UDP port 123 out.",
        )
    return _passed(told)


# --- packages -----------------------------------------------------------------------------------------------


def _package_lock(s: Situation) -> Check:
    if lock := s.host["packages"]["lock"]:
        return _fail(
            f"{lock['lock']} is held by process {lock['pid']} ({lock['command'] or 'unknown'})",
            "no package operation under way",
            "Wait until it has ended and run again; do not remove the lock.",
        )
    return _passed("free")


def _package_state(s: Situation) -> Check:
    if s.host["packages"]["lock"]:
        return _not_run("packages are being changed right now")
    if broken := s.host["packages"]["broken"]:
        return _fail(
            f"half installed: {', '.join(broken)}",
            "every package whole",
            "Run `dpkg --configure -a` and then `apt-get --fix-broken install` on the host.",
        )
    return _passed("every package is whole")


def _upgrades(s: Situation) -> Check:
    if s.host["packages"]["upgrading"]:
        return _fail(
            "unattended-upgrades is installing",
            "no upgrade under way",
            "Wait until it is done and run again.",
        )
    return _passed("none under way")


def _snap_docker(s: Situation) -> Check:
    if s.host["snap_docker"]:
        return _fail(
            "Docker is installed as a snap",
            "the distribution's Docker, which can use GPUs",
            "Run `snap remove docker` on the host.",
        )
    return _passed("none")


def _nvidia_docker2(s: Situation) -> Check:
    if s.host["packages"]["nvidia_docker2"]:
        return _warn(
            "nvidia-docker2 is installed",
            "nvidia-container-toolkit alone",
            "Role nvidia_container_toolkit replaces it; by hand: `apt-get remove nvidia-docker2`.",
        )
    return _passed("none")


# --- kernels ------------------------------------------------------------------------------------------------


REBOOT = "Drain the host and reboot it, once kernel_module passes."


def _kernel(s: Situation) -> Check:
    running, coming = s.host["kernel"]["running"], s.host["kernel"]["next"]
    if running != coming:
        return _warn(f"{running} runs, {coming} boots next", "the same", REBOOT)
    if s.host["reboot_required"]:
        return _warn(f"{running}; packages ask for a reboot", "no reboot due", REBOOT)
    return _passed(running)


def _kernel_module(s: Situation) -> Check:
    kernel, module = s.host["kernel"]["next"], s.host["kernel"]["module"]
    if module:
        return _passed(f"NVIDIA {module} for {kernel}")
    if not s.host["driver"]["module"]:
        return _passed(f"no driver yet; {kernel} has {'' if s.host['kernel']['headers'] else 'no '}headers")
    mend = (
        f"Run `dkms autoinstall -k {kernel}` and read its log"
        if s.host["kernel"]["headers"]
        else f"Install linux-headers-{kernel}, for which DKMS then builds the module"
    )
    return _fail(
        f"no NVIDIA module for {kernel}, which boots next",
        "a module for it, else the GPUs are gone after a reboot",
        f"{mend}; do not reboot before.",
    )


# --- GPUs ---------------------------------------------------------------------------------------------------


def _gpu_count(s: Situation) -> Check:
    found, stated = len(s.host["gpus"]), s.stated("gpu_count")
    told = f"{found} on the PCI bus"
    if stated is None:
        if not found:
            return _not_run(f"{told}, and the inventory names none")
        return _warn(
            told,
            "a number in hardware.gpu_count",
            "Write it into host_vars, so that a lost GPU is noticed.",
        )
    if found != stated:
        return _fail(
            told,
            f"{stated:g}, as hardware.gpu_count says",
            "A GPU has gone missing: read `journalctl -k`, power the machine off and on, ask the provider."
            if found < stated
            else "Correct hardware.gpu_count in host_vars.",
        )
    return _passed(told)


def _gpu_model(s: Situation) -> Check:
    models = {gpu["device"]: compat.gpu_by_pci(gpu["device"].removeprefix("0x")) for gpu in s.host["gpus"]}
    names = sorted(model["name"] if model else f"unknown device {device}" for device, model in models.items())
    told = ", ".join(names)
    if stated := s.hardware.get("gpu"):
        wanted = compat.gpu(stated)["name"]
        if any(model and model["name"] != wanted for model in models.values()):
            return _fail(
                told,
                f"{wanted}, as hardware.gpu says",
                "Ask the provider for the machine that was rented, or correct hardware.gpu in host_vars.",
            )
    if not all(models.values()):
        return _warn(
            told, compat.known_gpus(), "Compare with `lspci -nn`; add the id to mayafleet/data/compat.yml."
        )
    meant = [compat.gpu(name)["name"] for name in s.profile.get("gpus", names)]
    if not set(names) <= set(meant):
        return _warn(told, *_profile_wants(s.profile, " or ".join(meant)))
    return _passed(told)


def _gpu_bundle(s: Situation) -> Check:
    if not s.bundle:
        return _not_run("no bundle is chosen")
    rows = [compat.gpu_by_pci(gpu["device"].removeprefix("0x")) for gpu in s.host["gpus"]]
    return _of_findings(
        compat.judge_gpus(s.bundle, [row for row in rows if row]), "GPUs that the bundle can drive"
    )


def _of_findings(findings: Collection[Finding], wanted: str) -> Check:
    """What the compatibility table says, as one check."""
    level = worst(findings)
    grave = [finding for finding in findings if finding.level == level]
    told = "; ".join(dict.fromkeys(f"{finding.check}: {finding.found}" for finding in grave))
    mend = " ".join(dict.fromkeys(f"{finding.check}: {finding.mend}" for finding in grave if finding.mend))
    return _passed(told) if level is Level.PASS else Check("", level, told, wanted, mend)


def _driver(s: Situation) -> Check:
    module, library, wanted = s.host["driver"]["module"], s.host["driver"]["library"], s.driver_wanted
    target = wanted or "one version throughout"
    if not module and not library:
        return _passed("none yet; role nvidia_driver installs it", target)
    told = f"module {module or 'not loaded'}, library {library or 'none'}"
    if module == library == (wanted or module):
        return _passed(told, target)
    if library and module and module != library and library != wanted:
        return _fail(
            told,
            target,
            "Something else changed the driver, and new programs find no GPU: read /var/log/apt/history.log,"
            " then reboot.",
        )
    return _warn(
        told, target, "Run playbooks/site.yml, whose role nvidia_driver installs and reboots as needed."
    )


def _fabric_manager(s: Situation) -> Check:
    switches, manager = s.host["nvswitches"], s.host["packages"]["fabric_manager"]
    if not switches:
        return _passed("no NVSwitch, none needed")
    told = f"{switches} NVSwitch, fabric manager {manager or 'not installed'}"
    module, wanted = s.host["driver"]["module"], s.driver_wanted
    target = wanted or module or "the driver's version"
    if manager and module and manager not in (module, wanted):
        return _fail(
            told,
            target,
            "Install the fabric manager of exactly the driver's version; CUDA fails with error 802.",
        )
    if manager != target:
        return _warn(told, target, "Run playbooks/site.yml, whose role nvidia_driver installs it.")
    return _passed(told, target)


def _nouveau(s: Situation) -> Check:
    if s.host["nouveau"]["loaded"]:
        return _warn(
            "loaded", "not loaded", "Role nvidia_driver blacklists it, rebuilds the initramfs and reboots."
        )
    return _passed(
        "not loaded, " + ("blacklisted" if s.host["nouveau"]["blacklisted"] else "not blacklisted yet")
    )


def _secure_boot(s: Situation) -> Check:
    enabled = s.host["secure_boot"]["enabled"]
    if enabled is None:
        return _not_run("the firmware's variables cannot be read here")
    if not enabled:
        return _passed("off")
    source = s.bundle["driver"]["systems"][s.system]["source"] if s.bundle else None
    if s.host["driver"]["module"]:
        return _passed("on, and the NVIDIA module is loaded")
    if s.host["secure_boot"]["key_enrolled"]:
        return _passed("on, and the firmware knows the key that DKMS signs with")
    if s.system.startswith("ubuntu") and source == "distribution":
        return _passed("on; Ubuntu signs the modules that the bundle takes from it")
    return _fail(
        "on, and the firmware knows no key that DKMS signs with",
        "off, or the key enrolled",
        "Switch Secure Boot off in the firmware, or enrol the key: `mokutil --import /var/lib/dkms/mok.pub`"
        " (Ubuntu: /var/lib/shim-signed/mok/MOK.der), reboot, and confirm at the console.",
    )


CHECKS: dict[str, Callable[[Situation], Check]] = {
    "system": _system,
    "bundle": _bundle,
    "virtualisation": _virtualisation,
    "cgroup": _cgroup,
    "vcpus": _vcpus,
    "memory": _memory,
    "disk_space": _disk_space,
    "disk_kind": _disk_kind,
    "network": _network,
    "round_trip": _round_trip,
    "clock": _clock,
    "package_lock": _package_lock,
    "package_state": _package_state,
    "upgrades": _upgrades,
    "snap_docker": _snap_docker,
    "nvidia_docker2": _nvidia_docker2,
    "kernel": _kernel,
    "gpu_count": _gpu_count,
    "gpu_model": _gpu_model,
    "gpu_bundle": _gpu_bundle,
    "kernel_module": _kernel_module,
    "driver": _driver,
    "fabric_manager": _fabric_manager,
    "nouveau": _nouveau,
    "secure_boot": _secure_boot,
}
# Without a GPU there is nothing to look at.
GPU_CHECKS = frozenset(
    {"gpu_model", "gpu_bundle", "kernel_module", "driver", "fabric_manager", "nouveau", "secure_boot"}
)


# --- hosts that could not be judged -------------------------------------------------------------------------

REACHABLE, PROBE = "reachable", "probe"
# By what SSH or Ansible says; the first that matches.
REMEDIES = {
    r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED": (
        "Compare the host's key with the one on the provider's console, then pin it in known_hosts."
    ),
    r"Permission denied": "Check ansible_user, and that its key is on the host and offered here.",
    r"Connection refused": "Check ansible_host and ansible_port, and that sshd runs there.",
    r"[Tt]imed out|No route to host|unreachable": (
        "Check ansible_host, that the machine is on, and the provider's firewall and firewall_ssh_sources."
    ),
    r"Could not resolve": "Correct ansible_host.",
    r"sudo password|password is required": (
        "Let ansible_user use sudo without a password, or keep ansible_become_password in a vault."
    ),
    r"interpreter|python3: not found": "Install python3 on the host.",
}


def of_run(
    hosts: Collection[str], judged: Mapping[str, list[Check]], failures: Collection[Failure]
) -> dict[str, list[Check]]:
    """The checks of each host of a run, headed by whether it could be reached and probed.

    judged has the checks of the hosts that role preflight came to judge.
    """
    reasons = {failure.host: failure for failure in failures}
    checks = {}
    for host in hosts:
        own, reason = judged.get(host, []), reasons.get(host)
        if reason and reason.unreachable:
            checks[host] = [_stopped(REACHABLE, reason.message, "a login by SSH"), *own]
            continue
        checks[host] = [Check(REACHABLE, Level.PASS, "by SSH"), *own]
        if worst(own) is not Level.FAIL and (reason or not own):
            message = reason.message if reason else "the run ended before the host was judged"
            checks[host].append(_stopped(PROBE, message, "a probe to its end"))
    return checks


def _stopped(name: str, message: str, wanted: str) -> Check:
    remedy = next((mend for pattern, mend in REMEDIES.items() if re.search(pattern, message)), None)
    return Check(
        name, Level.FAIL, " ".join(message.split()), wanted, remedy or "Mend what this says, run again."
    )


# --- profiles -----------------------------------------------------------------------------------------------


def _profile(name: str) -> dict[str, Any]:
    profiles = _data()["profiles"]
    if name and name not in profiles:
        raise FleetError(
            f"There is no sizing profile {name!r}.", f"Profiles are: {', '.join(profiles)}.", ExitCode.USAGE
        )
    return {"name": name, **profiles[name]} if name else {}


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(PROFILES.read_text())
    return data
