"""Bundles: what they hold, and what is refused."""

import re
from pathlib import Path

import pytest
import yaml

from mayafleet import bundles, project
from mayafleet.errors import ExitCode, FleetError


@pytest.mark.parametrize("name", bundles.names())
def test_the_inference_part_says_what_the_lock_file_pins(name: str) -> None:
    inference = bundles.load(name)["inference"]
    lock = (project.root() / "inference" / inference["requirements"]).read_text()
    pins = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", lock))
    assert (pins["torch"], pins["vllm"]) == (inference["torch"], inference["vllm"])
    assert pins["onnxruntime-gpu"] == inference["onnxruntime"]


@pytest.mark.parametrize(("name", "cudnn"), [("535", "nvidia-cudnn-cu12"), ("580", "nvidia-cudnn-cu13")])
def test_hosts_get_the_cudnn_that_the_image_has(name: str, cudnn: str) -> None:
    bundle = bundles.load(name)
    lock = (project.root() / "inference" / bundle["inference"]["requirements"]).read_text()
    assert f"\n{cudnn}=={bundle['cudnn']['version']} " in lock


@pytest.mark.parametrize("name", bundles.names())
def test_a_bundle_is_named_like_its_file_and_its_branch(name: str) -> None:
    bundle = bundles.load(name)
    assert bundle["name"] == name == str(bundle["driver"]["branch"])


def test_an_own_bundle_is_a_file(tmp_path: Path) -> None:
    bundle = bundles.load("535")
    bundle["name"] = "ours"
    path = tmp_path / "ours.yml"
    path.write_text(yaml.safe_dump(bundle))
    assert bundles.load(str(path)) == bundle


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("driver.module", "closed", "driver.module is 'closed'; allowed: open or proprietary"),
        ("driver.branch", "535", "driver.branch is '535'; allowed: a whole number"),
        ("cuda.version", 12.8, "cuda.version is 12.8; allowed: text (in quotes)"),
        ("container_toolkit.request", "both", "container_toolkit.request is 'both'; allowed: gpus or cdi"),
        ("dcgm.version", None, "dcgm.version is missing"),
        ("driver.banch", 535, "driver.banch is unknown"),
        ("cuda.systems", {}, "cuda.systems.debian-12.source is missing"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    tmp_path: Path, field: str, value: object, told: str
) -> None:
    bundle = bundles.load("535")
    *folders, last = field.split(".")
    part = bundle
    for folder in folders:
        part = part[folder]
    part[last] = value
    path = tmp_path / "wrong.yml"
    path.write_text(yaml.safe_dump(bundle))
    with pytest.raises(FleetError) as refused:
        bundles.load(str(path))
    assert told in refused.value.message
    assert refused.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("content", ["a: [", "- a\n- b\n", ""])
def test_a_file_that_is_no_bundle_is_one_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yml"
    path.write_text(content)
    with pytest.raises(FleetError) as refused:
        bundles.load(str(path))
    assert str(path) in refused.value.message


def test_an_unknown_bundle_lists_those_that_there_are() -> None:
    with pytest.raises(FleetError) as refused:
        bundles.load("999")
    assert "535, 580" in refused.value.next_step


def test_differences_name_both_values() -> None:
    changes = {
        field: values for field, *values in bundles.differences(bundles.load("535"), bundles.load("580"))
    }
    assert changes["driver.version"] == ["535.309.01", "580.178.04"]
    assert "name" not in changes
    assert bundles.differences(bundles.load("535"), bundles.load("535")) == []
