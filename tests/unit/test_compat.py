"""The compatibility table, and what it says of bundles and GPUs."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mayafleet import bundles, compat, project, versions
from mayafleet import inventory as inventories
from mayafleet.checks import worst
from mayafleet.cli import app
from mayafleet.compat import Finding
from mayafleet.errors import ExitCode, FleetError

TODAY = date(2026, 11, 26)
EXAMPLE = ["-i", str(project.root() / "inventories" / "example")]
Change = Callable[[dict[str, Any]], None]


def judged(name: str, change: Change = lambda bundle: None, today: date = TODAY) -> list[Finding]:
    bundle = bundles.load(name)
    change(bundle)
    return compat.judge_bundle(bundle, today)


def failures(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.check, one.found) for one in findings if one.level == "fail"]


def gpus(*names: str) -> list[dict[str, Any]]:
    return [compat.gpu(name) for name in names]


def setting(field: str, value: object) -> Change:
    """field: names with slashes between, since systems have dots."""

    def change(bundle: dict[str, Any]) -> None:
        *folders, last = field.split("/")
        for folder in folders:
            bundle = bundle[folder]
        bundle[last] = value

    return change


def test_every_row_has_a_source_with_a_date() -> None:
    table = compat.table()
    sources = table["sources"]
    for part in (
        "branches",
        "gpus",
        "cuda",
        "cuda_releases",
        "libraries",
        "floors",
        "package_floors",
        "broken",
    ):
        for row in table[part]:
            assert sources[row["source"]]["url"], row
    assert all(isinstance(source["date"], date) for source in sources.values())
    assert {row["source"] for part in table.values() if isinstance(part, list) for row in part} | {
        table["nvswitches"]["source"]
    } == set(sources)


def test_versions_are_text() -> None:
    """570.26 without quotes would be a number, and 12.10 the same as 12.1."""
    table = compat.table()
    for part, field in (
        ("cuda", "driver"),
        ("cuda_releases", "version"),
        ("cuda_releases", "driver"),
        ("libraries", "version"),
        ("floors", "version"),
        ("broken", "version"),
        ("gpus", "compute_capability"),
    ):
        assert all(isinstance(row[field], str) for row in table[part]), (part, field)


def test_a_driver_older_than_the_one_that_cuda_came_with_is_a_warning() -> None:
    for name, level in (("535", "warn"), ("580", "pass")):
        [told] = [one for one in judged(name) if one.check == "driver for CUDA"]
        assert told.level == level
    [told] = [one for one in judged("580", setting("cuda/version", "13.2")) if one.check == "driver for CUDA"]
    assert (told.level, "595.45.04" in told.found) == ("warn", True)


def test_what_is_shipped_goes_together() -> None:
    assert [failures(judged(name)) for name in bundles.names()] == [[], []]
    assert worst(judged("580")) == "pass"


def test_the_default_says_that_its_branch_has_ended_and_what_to_take_instead() -> None:
    [ended] = [one for one in judged("535") if one.check == "driver branch"]
    assert (ended.level, ended.found) == ("warn", "535 reached its end of life in 2026-06")
    assert "580" in ended.mend
    assert judged("535", today=date(2026, 6, 30))[0].level == "pass"


def test_a_version_under_the_security_floor_names_the_vulnerability_and_the_version_that_mends_it() -> None:
    [told] = [
        one
        for one in judged("580", setting("container_toolkit/version", "1.18.2"))
        if one.check == "container_toolkit vulnerability"
    ]
    assert (told.level, told.found, told.mend) == (
        "warn", "1.18.2 has CVE-2026-24260, which 1.19.1 mends", "Take 1.20.0 or later.",
    )  # fmt: skip


def test_what_is_advised_is_neither_broken_nor_vulnerable() -> None:
    table = compat.table()
    broken = {(row["part"], row["version"]) for row in table["broken"]}
    advised = {(row["part"], row.get("take", row["version"])) for row in table["floors"]}
    assert not advised & broken


@pytest.mark.parametrize(
    ("name", "field", "value", "check"),
    [
        ("535", "cuda/version", "13.0", "CUDA and driver"),
        ("535", "driver/branch", 536, "driver branch"),
        ("535", "driver/version", "580.178.04", "package versions"),
        ("535", "driver/systems/ubuntu-22.04/package_version", "535.309.011-1", "package versions"),
        ("580", "driver/version", "580.65.05", "driver for CUDA"),
        ("580", "cudnn/package", "libcudnn9-cuda-12", "cuDNN and CUDA"),
        ("535", "cuda/systems/debian-12/package_version", "12.6.3-1", "package versions"),
        ("580", "container_toolkit/package_version", "1.19.0-1", "package versions"),
        ("580", "cudnn/version", "9.10.2.21", "cudnn"),
        ("535", "inference/torch", "2.14.0", "torch"),
        ("535", "inference/torch", "2.11.0", "vllm"),
        ("535", "inference/vllm", "0.33.0", "vllm"),
        ("535", "inference/onnxruntime", "1.31.1", "onnxruntime"),
        ("535", "inference/tensorrt", "11.2", "tensorrt"),
        ("580", "container_toolkit/version", "1.19.1", "container_toolkit"),
    ],
)
def test_parts_that_do_not_go_together_fail(name: str, field: str, value: object, check: str) -> None:
    assert check in [failed for failed, _ in failures(judged(name, setting(field, value)))]


def test_a_release_that_nobody_judged_is_a_warning() -> None:
    [told] = [one for one in judged("535", setting("inference/vllm", "0.40.0")) if one.check == "vllm"]
    assert told.level == "warn"


def test_blackwell_on_535_is_refused_with_the_bundle_that_knows_it() -> None:
    for name in ("NVIDIA B200", "NVIDIA GeForce RTX 5090"):
        refused = compat.judge_gpus(bundles.load("535"), gpus(name))[0]
        assert (refused.level, refused.mend) == ("fail", "Set fleet_bundle to 580.")
        assert "does not know Blackwell" in refused.found
        assert worst(compat.judge_gpus(bundles.load("580"), gpus(name))) == "pass"


def test_volta_ends_with_cuda_12_and_with_driver_580() -> None:
    volta, bundle = gpus("Tesla V100-SXM2-16GB"), bundles.load("580")
    [code] = [one for one in compat.judge_gpus(bundle, volta) if one.level == "fail"]
    assert code.found == "without code for Volta (7.0): CUDA 13.0, torch 2.14.0, cudnn 9.24.0.43"
    assert code.mend == "Set fleet_bundle to 535."

    # The driver of 580 with the libraries of 535 is a bundle that somebody with V100s may make.
    own = bundles.load("535") | {"driver": bundle["driver"]}
    findings = compat.judge_gpus(own, volta)
    assert failures(findings) == []
    assert [one.check for one in findings if one.level == "warn"] == ["tensorrt for Tesla V100"]
    assert compat.kernel_module(own, volta) == "proprietary"

    own["driver"] = {**bundle["driver"], "branch": 595}
    refused = compat.judge_gpus(own, volta)[0]
    assert (refused.level, "the last was 580" in refused.found) == ("fail", True)


def test_which_gpus_a_bundle_does_not_go_with() -> None:
    """The whole of it, so that a change of the table shows what it changes."""
    unfit = {
        name: {
            row["name"]
            for row in compat.table()["gpus"]
            if failures(compat.judge_gpus(bundles.load(name), [row]))
        }
        for name in bundles.names()
    }
    assert unfit == {"535": {"B200", "GeForce RTX 5090", "RTX PRO Blackwell"}, "580": {"Tesla V100"}}


def test_volta_and_blackwell_in_one_host_are_impossible() -> None:
    [*_, modules] = compat.judge_gpus(bundles.load("580"), gpus("Tesla V100", "NVIDIA B200"))
    assert (modules.check, modules.level) == ("kernel modules", "fail")


@pytest.mark.parametrize(
    ("bundle", "names", "module"),
    [
        ("535", ["NVIDIA A10"], "proprietary"),
        ("580", ["NVIDIA A10"], "open"),
        ("580", ["Tesla V100"], "proprietary"),
        ("580", ["NVIDIA A10", "Tesla V100"], "proprietary"),
        ("535", [], "proprietary"),
    ],
)
def test_kernel_modules_are_what_the_gpu_needs_else_what_the_bundle_prefers(
    bundle: str, names: list[str], module: str
) -> None:
    assert compat.kernel_module(bundles.load(bundle), gpus(*names)) == module


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100", "A100"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla V100-SXM2-16GB", "Tesla V100"),
        ("Tesla T4", "Tesla T4"),
    ],
)
def test_gpus_are_known_by_the_names_that_tools_give_them(name: str, known_as: str) -> None:
    assert compat.gpu(name)["name"] == known_as


def test_gpus_are_known_by_their_pci_device() -> None:
    found = {device: compat.gpu_by_pci(device) for device in ("2236", "20B5", "2901", "ffff")}
    assert [row and row["name"] for row in found.values()] == ["A10", "A100", "B200", None]


def test_no_pci_device_is_two_gpus() -> None:
    devices = [device for row in compat.table()["gpus"] for device in row["pci"]]
    assert all(isinstance(device, str) for device in devices)  # 2236 without quotes would be a number
    assert len(devices) == len(set(devices))


def test_an_unknown_gpu_lists_those_that_are_known() -> None:
    with pytest.raises(FleetError) as refused:
        compat.gpu("Radeon VII")
    assert "GeForce RTX 4090" in refused.value.next_step


def test_the_gpus_of_the_example_inventory_are_known_and_go_with_their_bundles() -> None:
    answer = CliRunner().invoke(
        app, ["compat", "-i", str(project.root() / "inventories" / "example"), "--json"]
    )
    found = json.loads(answer.stdout)
    example = inventories.load(project.root() / "inventories" / "example")
    assert {one["host"] for one in found} == set(example.groups["gpu"])
    assert {one["level"] for one in found} == {"warn"}  # the default bundle's branch has ended
    assert answer.exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["compat", "--gpu", "NVIDIA A10"], ExitCode.OK),
        (["compat", "--gpu", "NVIDIA A10", "--strict"], ExitCode.UNFIT),
        (["compat", "--gpu", "NVIDIA B200"], ExitCode.UNFIT),
        (["compat", "--gpu", "NVIDIA B200", "--bundle", "580"], ExitCode.OK),
        (["compat", "--gpu", "Radeon VII"], ExitCode.USAGE),
        (["compat", "--gpu", "NVIDIA A10", "--bundle", "999"], ExitCode.USAGE),
        (["compat"], ExitCode.USAGE),
        (["compat", *EXAMPLE, "--host", "fra-gpu-1"], ExitCode.OK),
        (["compat", *EXAMPLE, "--host", "fra-gpu-9"], ExitCode.NOTHING_MATCHED),
        (["compat", *EXAMPLE, "--host", "fra-mon-1"], ExitCode.NOTHING_MATCHED),
        (["compat", *EXAMPLE, "--limit", "fra-gpu-1", "--host", "fra-gpu-2"], ExitCode.USAGE),
        (["bundle", "check"], ExitCode.OK),
        (["bundle", "check", "535", "--strict"], ExitCode.UNFIT),
        (["bundle", "check", "580", "--strict"], ExitCode.OK),
        (["bundle", "list"], ExitCode.OK),
        (["bundle", "show", "535"], ExitCode.OK),
        (["bundle", "diff", "535", "580"], ExitCode.OK),
    ],
)
def test_exit_codes_say_what_was_found(arguments: list[str], code: ExitCode) -> None:
    answer = CliRunner().invoke(app, arguments)
    told = answer.exception
    assert (told.exit_code if isinstance(told, FleetError) else answer.exit_code) == code, answer.output


def test_a_judgement_of_hosts_says_that_no_host_was_asked() -> None:
    answer = CliRunner().invoke(app, ["compat", *EXAMPLE, "--host", "fra-gpu-1"], env={"COLUMNS": "300"})
    assert "by what the inventory says of its hosts" in " ".join(answer.stderr.split())
    assert "fra-gpu-1: bundle 535 with NVIDIA A10" in answer.stdout


HOSTS = """
gpu:
  hosts:
    old: {hardware: {gpu: NVIDIA B200}}
    older: {hardware: {gpu: NVIDIA B200}}
    new: {hardware: {gpu: NVIDIA B200}, fleet_bundle: "580"}
    unlisted: {hardware: {gpu: NVIDIA X1}}
    strict: {hardware: {gpu: NVIDIA A10}, fleet_refuse_insecure: true}
    own: {hardware: {gpu: NVIDIA A10}, fleet_bundle: "{{ inventory_dir }}/own.yml"}
  vars: {ansible_host: 127.0.0.1, ansible_port: 1}
monitoring:
  hosts:
    watch: {fleet_bundle: "999"}
"""


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("old,older,new", ["old, older: bundle 535: driver for B200", "Set fleet_bundle to 580."]),
        ("strict", ["535 reached its end of life"]),
        ("own", ["driver 535 runs CUDA up to 12.x"]),
    ],
)
def test_provision_refuses_before_it_connects_to_any_host(
    tmp_path: Path, limit: str, told: list[str]
) -> None:
    inventory, runs = tmp_path / "hosts.yml", tmp_path / "runs"
    inventory.write_text(HOSTS)
    own = bundles.load("535")
    own["cuda"]["version"] = "13.0"
    (tmp_path / "own.yml").write_text(yaml.safe_dump(own))
    command = ["provision", "-i", str(inventory), "--limit", limit, "--runs-dir", str(runs)]
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, FleetError)
    assert refused.exit_code == ExitCode.UNFIT
    for sentence in told:
        assert sentence in refused.message
    assert "new" not in refused.message.split(":")[0]
    assert not runs.exists()  # Ansible never ran


def test_hosts_whose_bundles_fit_are_approved_and_so_are_gpus_that_nobody_knows(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text(HOSTS)
    versions.require_fit(inventories.load(path), ["new", "unlisted", "watch"])


def test_bundle_list_says_how_each_stands() -> None:
    told = " ".join(CliRunner().invoke(app, ["bundle", "list"], env={"COLUMNS": "300"}).output.split())
    assert "535 reached its end of life in 2026-06" in told
    assert "580 is supported until 2028-06" in told
