import json
import time
from typing import Any
from urllib.parse import quote

import pytest


def ask(host: Any, path: str) -> Any:
    # Python, since a bare host has no curl.
    program = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090{path}').read().decode())"
    return json.loads(host.check_output(f'python3 -c "{program}"'))["data"]


def query(host: Any, promql: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = ask(host, f"/api/v1/query?query={quote(promql)}")["result"]
    return result


def eventually(question: Any, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(1)
    return answer


def test_listens_on_loopback_alone(host: Any) -> None:
    assert host.socket("tcp://127.0.0.1:9090").is_listening
    assert not host.socket("tcp://0.0.0.0:9090").is_listening
    assert not host.socket("tcp://:::9090").is_listening


def test_every_target_is_up(host: Any) -> None:
    wanted = {
        ("prometheus", "eu_frankfurt", "gpu1"),
        ("alertmanager", "eu_frankfurt", "gpu1"),
        ("maya1_tts", "eu_frankfurt", "gpu1"),
        ("node", "eu_frankfurt", "gpu1"),
        # By https, with an authority of its own, under another path.
        ("maya1_tts", "me_dubai", "gpu2"),
        ("node", "me_dubai", "gpu2"),
    }

    def up() -> bool:
        targets = ask(host, "/api/v1/targets")["activeTargets"]
        healthy = [target for target in targets if target["health"] == "up"]
        return {
            tuple(target["labels"][name] for name in ("job", "region", "host")) for target in healthy
        } == wanted

    assert eventually(up), ask(host, "/api/v1/targets")["activeTargets"]


def test_metrics_of_another_host_come_from_its_path(host: Any) -> None:
    found = eventually(lambda: query(host, 'node_memory_MemTotal_bytes{host="gpu2"}'))
    assert found[0]["value"][1] == "1000"


def test_rules_are_loaded_and_well(host: Any) -> None:
    groups = ask(host, "/api/v1/rules")["groups"]
    assert {group["name"] for group in groups} == {"maya1_service", "host", "gpu", "monitoring"}
    assert eventually(
        lambda: all(
            rule["health"] == "ok" for g in ask(host, "/api/v1/rules")["groups"] for rule in g["rules"]
        )
    )


def test_a_failing_cache_becomes_an_alert(host: Any) -> None:
    found = eventually(lambda: query(host, 'ALERTS{alertname="Maya1CacheDown"}'))
    assert {alert["metric"]["host"] for alert in found} == {"gpu1", "gpu2"}


def test_alerts_have_somewhere_to_go(host: Any) -> None:
    active = ask(host, "/api/v1/alertmanagers")["activeAlertmanagers"]
    assert [alertmanager["url"] for alertmanager in active] == ["http://127.0.0.1:9093/api/v2/alerts"]


def test_keeps_samples_as_long_as_it_was_told(host: Any) -> None:
    flags = ask(host, "/api/v1/status/flags")
    assert flags["storage.tsdb.retention.time"] == "30d"
    assert flags["storage.tsdb.retention.size"] in ("8GB", "8GiB")


def test_cannot_be_ended_or_changed_over_http(host: Any) -> None:
    flags = ask(host, "/api/v1/status/flags")
    assert flags["web.enable-lifecycle"] == flags["web.enable-admin-api"] == "false"


def test_starts_with_the_machine(host: Any) -> None:
    assert host.service("prometheus").is_enabled


HERE = {"region": "a", "host": "b"}


def targets(job: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"prometheus_targets": [{"job": job, "targets": [address], "labels": labels}]}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"prometheus_scrape_interval": "soon"}, "not a valid duration"),
        ({"prometheus_alert_error_ratio": "a lot"}, "prometheus_alert_error_ratio"),
        ({"prometheus_listen_address": "0.0.0.0:9090"}, "prometheus_listen_address is '0.0.0.0:9090'"),
        ({"prometheus_retention_size": "8 gigabytes"}, "prometheus_retention_size is '8 gigabytes'"),
        (targets("node", "192.0.2.1", HERE), "set scheme to https"),
        (targets("node", "127.0.0.1", {"region": "a"}), "labels must hold region and host"),
        (targets("node", "http://127.0.0.1", HERE), "must be HOST or HOST:PORT"),
        (targets("prometheus", "127.0.0.1", HERE), "the role scrapes that one itself"),
    ],
)
def test_a_broken_value_is_refused_and_the_last_good_configuration_stays(
    host: Any, converge: Any, value: dict[str, Any], named: str
) -> None:
    before = host.check_output(
        "cat /etc/prometheus/prometheus.yml /etc/prometheus/rules/maya1.yml /etc/default/prometheus"
    )
    result = converge(**value)
    assert result.returncode != 0
    assert named in " ".join(result.stdout.split())
    after = host.check_output(
        "cat /etc/prometheus/prometheus.yml /etc/prometheus/rules/maya1.yml /etc/default/prometheus"
    )
    assert after == before


def test_an_authority_that_prometheus_cannot_read_is_named(host: Any, converge: Any) -> None:
    host.check_output("install -m 600 /opt/service/cert.pem /opt/service/closed.pem")
    target = {"job": "node", "targets": ["192.0.2.1"], "scheme": "https", "labels": HERE}
    result = converge(prometheus_targets=[target | {"ca_file": "/opt/service/closed.pem"}])
    assert result.returncode != 0
    assert "ca_file /opt/service/closed.pem" in " ".join(result.stdout.split())
    assert "closed.pem" not in host.file("/etc/prometheus/prometheus.yml").content_string


def test_flags_are_taken_even_if_what_comes_after_them_is_refused(host: Any, converge: Any) -> None:
    try:
        assert converge(prometheus_retention_time="14d", prometheus_scrape_interval="soon").returncode != 0
        assert eventually(lambda: ask(host, "/api/v1/status/flags")["storage.tsdb.retention.time"] == "2w")
    finally:
        assert converge().returncode == 0


def test_changed_targets_are_taken_by_a_reload_and_changed_flags_by_a_restart(
    host: Any, converge: Any
) -> None:
    begin = "systemctl show prometheus --property=ActiveEnterTimestampMonotonic"
    started = host.check_output(begin)
    try:
        assert converge(**targets("node", "127.0.0.1:9100", HERE)).returncode == 0
        found = eventually(lambda: query(host, 'up{job="node", host="b"}'))
        assert found[0]["value"][1] == "1"
        assert host.check_output(begin) == started
    finally:
        assert converge(prometheus_retention_time="7d").returncode == 0
    assert host.check_output(begin) != started
    assert ask(host, "/api/v1/status/flags")["storage.tsdb.retention.time"] == "1w"
