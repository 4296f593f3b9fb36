"""The dashboard is well formed, every query is PromQL that a real parser takes, and its metrics exist."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fleet.monitoring_files import ROLES, promtool, render, unknown_gpu_metrics, unknown_service_metrics


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    panels = yaml.safe_load((ROLES / "grafana" / "files" / "panels.yml").read_text())
    parsed: dict[str, Any] = json.loads(render("grafana", "dashboard.json.j2", __grafana_panels=panels))
    return parsed


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_queries_parse(dashboard: dict[str, Any], tmp_path: Path) -> None:
    # As recording rules, since promtool has no stable command for a lone query. Grafana fills variables in.
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries(dashboard))
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "queries.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_metrics_of_the_service_exist(dashboard: dict[str, Any]) -> None:
    assert not unknown_service_metrics("\n".join(queries(dashboard)))


def test_metrics_of_the_gpus_exist(dashboard: dict[str, Any]) -> None:
    assert not unknown_gpu_metrics("\n".join(queries(dashboard)))


def test_every_query_obeys_the_chosen_region_and_host(dashboard: dict[str, Any]) -> None:
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["region", "host"]
    for query in queries(dashboard):
        selectors = query.count("{")
        assert query.count('region=~"$region"') == query.count('host=~"$host"') == selectors > 0, query


def test_panels_lie_side_by_side(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_panels_are_complete(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} == {"row", "stat", "timeseries"}
    source = yaml.safe_load(render("grafana", "provisioning/datasources/maya1.yaml.j2"))["datasources"][0]
    for panel in panels:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
            assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[
                : len(panel["targets"])
            ]
