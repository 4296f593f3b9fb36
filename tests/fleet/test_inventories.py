"""The inventories that ship: they parse, select by region, and hold what the roles ask for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayafleet import networks, tokens

PROJECT = Path(__file__).resolve().parents[2]
BIN = PROJECT / ".venv" / "bin"


def run(*command: str) -> str:
    environment = os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    inventory: dict[str, Any] = json.loads(run("ansible-inventory", "-i", "inventories/example", "--list"))
    return inventory


def evaluated(host: str, expression: str) -> Any:
    """An expression with the host's variables, as a role would see it."""
    out = run("ansible", "-i", "inventories/example", host, "-c", "local", "-m", "ansible.builtin.debug",
              "-a", f'msg="{{{{ {expression} }}}}"')  # fmt: skip
    return yaml.safe_load(out.split("=>", 1)[1])["msg"]


@pytest.mark.parametrize("inventory", ["example", "lab"])
@pytest.mark.parametrize("playbook", ["site", "verify", "preflight", "gpu_health"])
def test_syntax(inventory: str, playbook: str) -> None:
    run("ansible-playbook", "-i", f"inventories/{inventory}", f"playbooks/{playbook}.yml", "--syntax-check")


def test_keys_beside_the_hosts_are_no_inventory(tmp_path: Path) -> None:
    """Where docs/inventory.md has them put."""
    mine = tmp_path / "mine"
    shutil.copytree(PROJECT / "inventories" / "example", mine)
    tokens.create_key_pair(mine / "files" / "jwt")
    assert "fra-gpu-1" in run("ansible-inventory", "-i", str(mine), "--list")


def test_a_region_limit_selects_its_hosts_alone() -> None:
    out = run(
        "ansible-playbook",
        "-i",
        "inventories/example",
        "playbooks/site.yml",
        "--limit",
        "eu_frankfurt",
        "--list-hosts",
    )
    hosts = {line.strip() for line in out.splitlines() if line.startswith("      ")}
    assert hosts == {"fra-gpu-1", "fra-gpu-2", "fra-mon-1"}


def test_every_host_has_one_region_a_role_and_at_most_one_profile(example: dict[str, Any]) -> None:
    variables = example["_meta"]["hostvars"]
    regions = {group: set(example[group]["hosts"]) for group in {v["region"] for v in variables.values()}}
    assert len(regions) == 4
    profiles = [
        set(example.get(f"profile_{name}", {}).get("hosts", [])) for name in ("realtime", "batch", "training")
    ]
    gpu, monitoring = set(example["gpu"]["hosts"]), set(example["monitoring"]["hosts"])
    for host, own in variables.items():
        assert [region for region, hosts in regions.items() if host in hosts] == [own["region"]]
        assert host in gpu | monitoring
        assert sum(host in hosts for hosts in profiles) == (host in gpu)
        assert {"city", "country", "provider"} <= own["datacenter"].keys()


def test_host_vars_hold_hardware_and_addresses_only() -> None:
    for path in (PROJECT / "inventories" / "example" / "host_vars").glob("*.yml"):
        assert set(yaml.safe_load(path.read_text())) == {"ansible_host", "wireguard_address", "hardware"}, (
            path
        )


def test_a_monitoring_host_scrapes_its_region_through_the_private_network() -> None:
    targets = evaluated("fra-mon-1", "prometheus_targets")
    remote = [entry for entry in targets if not entry["targets"][0].startswith("127.")]
    assert {(entry["labels"]["host"], *entry["targets"]) for entry in remote} == {
        ("fra-gpu-1", evaluated("fra-gpu-1", "wireguard_address")),
        ("fra-gpu-2", evaluated("fra-gpu-2", "wireguard_address")),
    }
    assert {entry["scheme"] for entry in remote} == {"https"}
    assert sorted({entry["job"] for entry in remote}) == ["gpu", "maya1_tts", "node"]
    assert {entry["labels"]["region"] for entry in targets} == {"eu_frankfurt"}
    assert evaluated("fra-gpu-1", "gateway_metrics_allow") == [evaluated("fra-mon-1", "wireguard_address")]
    # What the gateway there answers with is valid for it.
    assert evaluated("fra-gpu-1", "wireguard_address in tls_addresses")


def test_addresses_of_the_private_network_are_well(example: dict[str, Any]) -> None:
    variables = example["_meta"]["hostvars"]
    (network,) = {host["wireguard_network"] for host in variables.values()}
    hosts = {
        name: {"address": host["wireguard_address"], "endpoint": host["ansible_host"]}
        for name, host in variables.items()
    }
    assert networks.mesh_faults(network, hosts) == []
