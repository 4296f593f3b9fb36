"""Selections and variables, resolved by the real Ansible."""

from pathlib import Path

import pytest

from mayafleet import inventory
from mayafleet.errors import ExitCode, FleetError
from mayafleet.inventory import Inventory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "group_vars").mkdir()
    (folder / "hosts.yml").write_text(
        "all:\n"
        "  children:\n"
        "    eu_frankfurt: {hosts: {fra1: {fleet_port: 8443}, fra2: }}\n"
        "    me_dubai: {hosts: {dub1: }}\n"
        "    gpu: {children: {eu_frankfurt: , me_dubai: }}\n"
        "    monitoring: {hosts: {fra2: , watch: }}\n"
        "  vars: {region_label: none}\n"
    )
    (folder / "group_vars" / "eu_frankfurt.yml").write_text("region: eu_frankfurt\n")
    (folder / "group_vars" / "me_dubai.yml").write_text("region: '{{ group_names | first }}'\n")
    (folder / "group_vars" / "gpu.yml").write_text(
        "fleet_url: 'https://{{ inventory_hostname }}:{{ fleet_port }}'\n"
    )
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Inventory:
    return inventory.load(folder)


def test_regions_are_the_groups_whose_variables_say_so(fleet: Inventory) -> None:
    assert fleet.regions == ("eu_frankfurt", "me_dubai")
    assert set(fleet.hosts) == {"fra1", "fra2", "dub1", "watch"}
    assert fleet.groups["gpu"] == ["fra1", "fra2", "dub1"]


@pytest.mark.parametrize(
    ("limit", "regions", "hosts", "told_ansible"),
    [
        (None, [], {"fra1", "fra2", "dub1", "watch"}, None),
        ("gpu:!fra1", [], {"fra2", "dub1"}, "gpu:!fra1"),
        (None, ["me_dubai"], {"dub1"}, "dub1"),
        (None, ["me_dubai", "eu_frankfurt"], {"fra1", "fra2", "dub1"}, "fra1,fra2,dub1"),
        ("monitoring:dub1", ["eu_frankfurt"], {"fra2"}, "fra2"),
    ],
)
def test_a_selection_is_the_hosts_that_pattern_and_regions_share(
    fleet: Inventory, limit: str | None, regions: list[str], hosts: set[str], told_ansible: str | None
) -> None:
    selection = inventory.select(fleet, limit, regions)
    assert set(selection.hosts) == hosts
    assert selection.limit == told_ansible


@pytest.mark.parametrize(
    ("limit", "regions", "message"),
    [
        ("fra9", [], "--limit names 'fra9', which matches nothing"),
        ("fra1,fra9", [], "--limit names 'fra9', which matches nothing"),
        ("watch", ["me_dubai"], "No host matches --limit watch and --region me_dubai"),
        (None, ["us_ohio"], "no region 'us_ohio'"),
        (None, ["gpu"], "no region 'gpu'"),
    ],
)
def test_nothing_matched_lists_what_exists(
    fleet: Inventory, limit: str | None, regions: list[str], message: str
) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        inventory.select(fleet, limit, regions)
    assert caught.value.exit_code == ExitCode.NOTHING_MATCHED
    assert "Regions: eu_frankfurt, me_dubai. Other groups: gpu, monitoring. Hosts: " in caught.value.next_step


def test_variables_are_templated_as_for_a_task(fleet: Inventory) -> None:
    values = inventory.variables(fleet, "fra1", ["fleet_url", "region", "fleet_ca_file"])
    assert values == {"fleet_url": "https://fra1:8443", "region": "eu_frankfurt", "fleet_ca_file": None}


def test_a_variable_that_does_not_resolve_names_what_is_missing(fleet: Inventory) -> None:
    with pytest.raises(FleetError, match=r"variables of host fra2 do not resolve: 'fleet_port' is undefined"):
        inventory.variables(fleet, "fra2", ["fleet_url"])


def test_an_unknown_host_has_no_variables(fleet: Inventory) -> None:
    with pytest.raises(FleetError, match="no host 'fra9'"):
        inventory.variables(fleet, "fra9", ["region"])


def test_a_missing_or_broken_inventory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="There is no inventory") as caught:
        inventory.load(tmp_path / "absent")
    assert caught.value.exit_code == ExitCode.USAGE
    broken = tmp_path / "hosts.yml"
    broken.write_text("all: [")
    with pytest.raises(FleetError, match=r"Ansible cannot read .*hosts\.yml: ") as caught:
        inventory.load(broken)
    assert "\n" not in caught.value.message


def test_several_inventories_are_one(folder: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.yml"
    more.write_text("gpu: {hosts: {extra: }}\n")
    assert "extra" in inventory.load([folder, more]).groups["gpu"]
