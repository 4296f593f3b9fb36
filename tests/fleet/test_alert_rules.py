"""The alert rules fire when they should, stay silent when they should, and name metrics that exist."""

import re
from pathlib import Path

import yaml

from mayafleet import gpu_health
from tests.fleet.monitoring_files import alert_rules, promtool, unknown_gpu_metrics, unknown_service_metrics

UNIT_TESTS = Path(__file__).with_name("prometheus_rules_test.yml")


def test_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "maya1.yml").write_text(alert_rules())
    checked = promtool("check", "rules", tmp_path / "maya1.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_fire_and_stay_silent(tmp_path: Path) -> None:
    (tmp_path / "maya1.yml").write_text(alert_rules())
    (tmp_path / UNIT_TESTS.name).write_text(UNIT_TESTS.read_text())
    tested = promtool("test", "rules", tmp_path / UNIT_TESTS.name)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_unit_test_that_fires() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(alert_rules())["groups"] for rule in group["rules"]}
    fired = {
        check["alertname"]
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for check in test["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert alerts == fired


def test_every_alert_says_how_bad_where_and_what() -> None:
    for group in yaml.safe_load(alert_rules())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
            assert "$labels.host" in rule["annotations"]["summary"], rule["alert"]
            assert rule["annotations"]["description"], rule["alert"]


def test_metrics_of_the_service_exist() -> None:
    assert not unknown_service_metrics(alert_rules())


def test_metrics_of_the_gpus_exist() -> None:
    assert not unknown_gpu_metrics(alert_rules())


def test_xids_of_the_rules_are_those_of_the_table() -> None:
    rules = {
        rule["alert"]: rule for group in yaml.safe_load(alert_rules())["groups"] for rule in group["rules"]
    }
    for alert, severity in (("GpuXidCritical", "critical"), ("GpuXidRepeated", "warning")):
        named = re.findall(r'xid=~"([0-9|]+)"', rules[alert]["expr"])
        known = [row["xid"] for row in gpu_health.table()["xids"] if row["severity"] == severity]
        assert [int(number) for number in named[0].split("|")] == known
