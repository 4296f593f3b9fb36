"""The bill of materials, and that nothing which is locked has a known hole."""

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from mayafleet import bundles, compat, locks, project, sbom
from mayafleet.cli import app
from mayafleet.errors import FleetError


@pytest.mark.parametrize("bundle", bundles.names())
def test_the_bill_is_cyclonedx_and_names_what_is_locked(bundle: str) -> None:
    printed = CliRunner().invoke(app, ["bundle", "sbom", bundle]).stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(printed) is None
    components = json.loads(printed)["components"]
    urls = {(one["properties"][0]["value"], one["purl"]) for one in components}
    assert len(urls) == len(components)
    wanted = bundles.load(bundle)
    assert ("service", f"pkg:pypi/vllm@{wanted['inference']['vllm']}") in urls
    assert ("command", f"pkg:pypi/pyjwt@{locks.pinned(locks.operator())['pyjwt']}") in urls
    assert ("host", f"pkg:generic/nvidia/nvidia-driver@{wanted['driver']['version']}") in urls
    images = [url for _, url in urls if url.startswith("pkg:oci/")]
    assert len(images) == 2
    assert all("@sha256:" in url and "repository_url=" in url for url in images)


def test_what_other_systems_alone_install_is_left_out() -> None:
    assert "colorama" in locks.operator().read_text()
    assert "colorama" not in locks.pinned(locks.operator())


def test_no_lock_file_has_a_package_with_a_known_hole() -> None:
    files = [*project.root().glob("requirements*.lock"), *project.root().glob("inference/requirements*.lock")]
    assert len(files) == 7
    for lock in files:
        assert list(compat.below_floor(locks.pinned(lock))) == [], lock


def test_a_bundle_whose_lock_has_a_known_hole_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.lock"
    old.write_text("jinja2==3.1.5 \\\n    --hash=sha256:00\nh11==0.16.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(locks, "service", lambda name: old)
    found = {one.check: one for one in compat.judge_bundle(bundles.load("535"))}
    assert found["jinja2 vulnerability"].level == "warn"
    assert "3.1.5 has CVE-2025-27516, which 3.1.6 mends" in found["jinja2 vulnerability"].found
    assert "h11 vulnerability" not in found


def test_a_bundle_that_names_no_lock_file_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(
        (bundles.FOLDER / "535.yml").read_text().replace("requirements-cuda-535.lock", "cuda.lock")
    )
    with pytest.raises(FleetError, match=r"inference\.requirements is 'cuda\.lock'.*") as raised:
        sbom.of(bundles.load(str(file)))
    assert "requirements-cuda-535.lock" in str(raised.value.next_step)
