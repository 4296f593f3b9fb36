"""Ansible filters: what playbooks and the operator's command judge by the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleFilterError

from mayafleet import bundles, compat, gpu_health, networks, preflight
from mayafleet.errors import FleetError


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "load_bundle": load_bundle,
            "bundle_findings": bundle_findings,
            "driver_for_gpus": driver_for_gpus,
            "preflight_checks": preflight_checks,
            "gpu_health": judge_gpu_health,
            "invalid_networks": networks.invalid,
            "contain_address": networks.contain,
            "mesh_faults": mesh_faults,
        }


def load_bundle(name: str) -> bundles.Bundle:
    """The bundle of this name, or in this file."""
    try:
        return bundles.load(name)
    except FleetError as error:
        raise AnsibleFilterError(f"{error.message} {error.next_step}") from None


def bundle_findings(bundle: bundles.Bundle, gpus: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the compatibility table says of a bundle, and of these GPUs with it."""
    findings = compat.judge(bundle, gpus)
    return [{**asdict(finding), "level": finding.level.value} for finding in findings]


def mesh_faults(hosts: Mapping[str, Mapping[str, Any]], network: str) -> list[str]:
    """What is wrong with the hosts of a private network, or with the network itself."""
    return networks.mesh_faults(network, hosts)


def driver_for_gpus(bundle: bundles.Bundle, devices: Sequence[str]) -> dict[str, Any]:
    """Which kernel modules GPUs of these PCI ids take (open, proprietary), and why they refuse a bundle."""
    rows = [row for device in devices if (row := compat.gpu_by_pci(device.removeprefix("0x")))]
    failed = [finding for finding in compat.judge_gpus(bundle, rows) if finding.level == "fail"]
    return {
        "module": compat.kernel_module(bundle, rows),
        "refused": [f"{one.check}: {one.found}. {one.mend}" for one in failed],
    }


def preflight_checks(host: Mapping[str, Any], **inventory: Any) -> list[dict[str, str]]:
    """The checks of `mayafleet.preflight.judge` as plain dictionaries."""
    try:
        checks = preflight.judge(host, **inventory)
    except FleetError as error:
        raise AnsibleFilterError(f"{error.message} {error.next_step}") from None
    return [{**asdict(check), "level": check.level.value} for check in checks]


def judge_gpu_health(
    probe: Mapping[str, Any], wanted: int | None = None, driver: str | None = None
) -> dict[str, Any]:
    """How the GPUs of a host are, of what module gpu_probe found there, as plain data."""
    return gpu_health.as_document(gpu_health.judge(probe, wanted=wanted, driver=driver))
